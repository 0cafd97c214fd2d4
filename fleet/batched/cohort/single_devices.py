"""Devices of a cohort that work one after the other, by the code that runs on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from broker.protocol.seeds import Streams
from edge_agent.machine.decoded_plan import decode_plan
from edge_agent.machine.device_state import DeviceState, model_key
from edge_agent.machine.pending_update import LocalReport, LocalUpdate
from edge_agent.training.local_task import run_local_task
from fedge.errors import DeclinedError, FederationError
from fleet.batched.cohort.batches import number_of_steps
from fleet.batched.cohort.cohort_update import CohortUpdate
from fleet.batched.cohort.device_states import CohortState, device_state
from fleet.batched.cohort.devices import (
    Agents,
    CodecSeeds,
    Declined,
    Measured,
    Part,
    by_state,
    read_states,
)
from fleet.batched.cohort.task import Columns, PhaseTask
from learning.algorithms.algorithm import Upload
from learning.codecs.many import decode_many
from learning.codecs.registry import CODECS
from learning.phases.phase import Request
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from learning.vector.sums_table import SumsTable

#: Updates that are in memory at a time.
_BLOCK_NUMBERS = 1 << 22
_LOSSLESS = "float32"


class SingleDevices:
    """See `Devices`.

    Args:
        part: of the fleet.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._streams = Streams()
        self._block = max(1, min(256, _BLOCK_NUMBERS // part.package.spec.whole_size))

    def train(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> Iterator[tuple[CohortUpdate, Declined]]:
        """See `Devices.train`."""
        for places in by_state(columns):
            for start in range(0, len(places), self._block):
                block = places[start : start + self._block]
                yield self._train_block(request, task, agents[block], columns.part(block))

    def _train_block(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> tuple[CohortUpdate, Declined]:
        state = read_states(self._part, agents, columns)
        found = _Found()
        declined: Declined = {}
        for place, number in enumerate(agents.tolist()):
            name = self._part.names[number]
            try:
                update = self._run(task, number, name, self._state(task, state, columns, place))
            except DeclinedError as error:
                declined[name] = (error.reason, str(error))
                continue
            except FederationError as error:
                declined[name] = ("training", str(error))
                continue
            assert isinstance(update, LocalUpdate), "training uploads vectors"
            found.add(number, name, update)
        return self._cohort(found, request, task), declined

    def _state(
        self, task: PhaseTask, state: CohortState, columns: Columns, place: int
    ) -> DeviceState:
        if not columns.slots[place]:
            return DeviceState()
        key, plan = model_key(self._part.package.spec), task.plan
        name = decode_plan(plan).algorithm_name
        return device_state(state, place, key, plan.session, name)

    def _run(
        self, task: PhaseTask, number: int, name: str, state: DeviceState
    ) -> LocalUpdate | LocalReport:
        part = self._part
        return run_local_task(
            task.plan,
            task.vectors,
            state,
            part.model,
            part.data.dataset(number),
            name,
            stream_at=self._streams.at,
        )

    def _cohort(self, found: _Found, request: Request, task: PhaseTask) -> CohortUpdate:
        """Returns updates of single devices as those of a cohort."""
        agents = np.array(found.agents, np.int64)
        updates = found.updates
        first = updates[0] if updates else None
        vectors = {} if first is None else first.vectors
        payloads = {name: [_payload(each, name) for each in updates] for name in vectors}
        states = [each.state for each in updates]
        counts = np.array([each.num_examples for each in updates], np.int64)
        steps = [number_of_steps(count, request.training) for count in counts.tolist()]
        return CohortUpdate(
            agents,
            [each.vectors for each in updates],
            payloads,
            {n: self._decoded(n, payloads[n], ref.size, found, task) for n, ref in vectors.items()},
            counts,
            SumsTable.of(dict(zip(found.names, (each.sums for each in updates), strict=True))),
            self._part.seconds_per_step[agents] * np.array(steps, np.float64),
            _joined_states(states),
        )

    def _decoded(
        self, name: str, payloads: Sequence[bytes], size: int, found: _Found, task: PhaseTask
    ) -> F32:
        """Returns one vector of each update as it arrives, float32, [n, size]."""
        decoded = decode_plan(task.plan)
        upload = decoded.algorithm.uploads.get(name, Upload())
        codec = CODECS.make(_LOSSLESS) if upload.lossless else decoded.codec
        return decode_many(codec, payloads, size, CodecSeeds(task.plan.seed, found.names))

    def evaluate(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> Iterator[tuple[Measured, Declined]]:
        """See `Devices.evaluate`."""
        for places in by_state(columns):
            state = read_states(self._part, agents[places], columns.part(places))
            sums: dict[str, Sums] = {}
            measured, declined = [], Declined()
            for at, place in enumerate(places.tolist()):
                number = int(agents[place])
                name = self._part.names[number]
                own = self._state(task, state, columns.part(places), at)
                try:
                    report = self._run(task, number, name, own)
                except DeclinedError as error:
                    declined[name] = (error.reason, str(error))
                    continue
                except FederationError as error:
                    declined[name] = ("evaluation", str(error))
                    continue
                sums[name] = report.sums
                measured.append(number)
            yield Measured(np.array(measured, np.int64), SumsTable.of(sums)), declined


@dataclass
class _Found:
    """Updates of single devices."""

    agents: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    updates: list[LocalUpdate] = field(default_factory=list)

    def add(self, number: int, name: str, update: LocalUpdate) -> None:
        self.agents.append(number)
        self.names.append(name)
        self.updates.append(update)


def _payload(update: LocalUpdate, name: str) -> bytes:
    start = 0
    for other, ref in update.vectors.items():
        if other == name:
            return update.body[start : start + ref.bytes]
        start += ref.bytes
    raise KeyError(name)


def _joined_states(states: Sequence[DeviceState]) -> CohortState:
    """Returns states of single devices as those of a cohort; what one of them lacks is zeros."""
    residuals = {}
    for name in {name for state in states for name in state.residuals}:
        known = {n: s.residuals[name].vector for n, s in enumerate(states) if name in s.residuals}
        residuals[name] = _filled(known, len(states))
    vectors = {
        name: np.stack([state.vectors[name] for state in states])
        for name in (states[0].vectors if states else {})
    }
    personal = [state.personal for state in states if state.personal is not None]
    return CohortState(residuals, vectors, np.stack(personal) if personal else None)


def _filled(known: dict[int, F32], count: int) -> F32:
    found = np.zeros((count, next(iter(known.values())).size), np.float32)
    for place, vector in known.items():
        found[place] = vector
    return found
