"""Work of one part of a fleet in one phase: what devices do, and the coordinator's intake.

A pure function of the task and of the states on disk that its columns name: a part that is asked
again, after a process was lost, gives the same answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ConfigError
from fleet.batched.cohort.devices import Declined, Devices, Part, request_of
from fleet.batched.cohort.intake import CohortIntake
from fleet.batched.cohort.single_devices import SingleDevices
from fleet.batched.cohort.task import PartAnswer, PhaseTask
from fleet.batched.cohort.vectorized_devices import VectorizedDevices
from learning.aggregation.aggregator import Aggregator
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Weighting
from learning.phases.evaluate import Evaluate
from learning.phases.phase import CollectorContext
from learning.phases.train import Train
from learning.registry import Choice


def work(part: Part, task: PhaseTask, aggregator: Choice, weighting: Weighting) -> PartAnswer:
    """Returns the answers of the agents of a part that are asked.

    Args:
        part: of the fleet.
        task: of the phase.
        aggregator: of the federation.
        weighting: likewise.
    """
    decoded, request = request_of(task.plan, task.vectors)
    phase = decoded.phase
    if not isinstance(phase, Train | Evaluate):
        raise ConfigError(f"phase {task.plan.phase_name!r} has no cohorts")
    sizes = {n: u.size(part.package.spec.size) for n, u in decoded.algorithm.uploads.items()}

    def empty() -> Aggregator:
        made: Aggregator = AGGREGATORS.make(aggregator, sizes)
        return made

    context = CollectorContext(decoded.algorithm, empty, weighting, sizes)
    answer = PartAnswer(phase.collector(context), task.norms, task.columns)
    intake = CohortIntake(part, task, answer)
    devices = make_devices(part)
    columns = task.columns
    position = _positions(task.asked, len(part.names))
    if isinstance(phase, Train):
        for update, declined in devices.train(request, task, task.asked, columns):
            _decline(answer, declined)
            own = position[update.agents]
            taken = columns.part(own)
            intake.updates(update, taken)
            columns.put(own, taken)
    else:
        for measured, declined in devices.evaluate(request, task, task.asked, columns):
            _decline(answer, declined)
            own = position[measured.agents]
            taken = columns.part(own)
            intake.measurements(measured, taken)
            columns.put(own, taken)
    return answer


def make_devices(part: Part) -> Devices:
    """Returns how the devices of a part work."""
    return SingleDevices(part) if part.kernel is None else VectorizedDevices(part, part.kernel)


def _positions(asked: NDArray[np.int64], agents: int) -> NDArray[np.int64]:
    """Returns the place in `asked` of each agent of the part."""
    found = np.full(agents, -1, np.int64)
    found[asked] = np.arange(len(asked))
    return found


def _decline(answer: PartAnswer, declined: Declined) -> None:
    answer.declined.update(declined)
