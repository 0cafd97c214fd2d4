"""Devices of a cohort that train and measure in one call, [agents, P] at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.protocol.messages import RoundPlan, VectorRef
from edge_agent.machine.decoded_plan import DecodedPlan
from edge_agent.training.local_task import ROUNDING, TRAINING
from fedge.errors import CodecError
from fleet.batched.cohort.batches import (
    groups_of_steps,
    held_out_rows,
    number_of_steps,
    training_batches,
)
from fleet.batched.cohort.cohort_update import CohortUpdate
from fleet.batched.cohort.device_states import CohortState
from fleet.batched.cohort.devices import (
    Agents,
    CodecSeeds,
    Declined,
    Draws,
    Measured,
    Part,
    by_state,
    chosen_rows,
    read_states,
    request_of,
    sums_table,
)
from fleet.batched.cohort.task import Columns, PhaseTask
from fleet.batched.cohort.training import CohortTrained, Kernel, train_cohort
from learning.algorithms.algorithm import LocalContext, LocalRun, Summary, Upload
from learning.codecs.feedback import EncodedMany, encode_many_with_feedback
from learning.codecs.registry import CODECS
from learning.phases.phase import WEIGHTS, Request
from learning.registry import Choice
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

#: Numbers of one block's vectors: its θ, gradients and updates stay in a core's cache, or near it.
_BLOCK_NUMBERS = 1 << 19
_MOST_AGENTS = 128
_LOSSLESS = "float32"


class VectorizedDevices:
    """See `Devices`.

    Args:
        part: of the fleet; it has a kernel.
    """

    def __init__(self, part: Part, kernel: Kernel) -> None:
        self._part = part
        self._kernel = kernel
        size = part.package.spec.whole_size
        self._block = max(1, min(_MOST_AGENTS, _BLOCK_NUMBERS // size))

    def train(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> Iterator[tuple[CohortUpdate, Declined]]:
        """See `Devices.train`."""
        decoded, _ = request_of(task.plan, task.vectors)
        draws = Draws(self._part.mode, task.plan)
        counts = self._part.data.num_train[agents]
        for places in by_state(columns):
            for group in groups_of_steps(counts[places], request.training):
                chosen = places[group]
                for start in range(0, len(chosen), self._block):
                    block = np.sort(chosen[start : start + self._block])
                    yield self._train_block(
                        request, decoded, task, agents[block], columns.part(block), draws
                    )

    def _train_block(
        self,
        request: Request,
        decoded: DecodedPlan,
        task: PhaseTask,
        agents: Agents,
        columns: Columns,
        draws: Draws,
    ) -> tuple[CohortUpdate, Declined]:
        part, plan = self._part, request.training
        names = [part.names[number] for number in agents.tolist()]
        state = read_states(part, agents, columns)
        context = LocalContext(
            request.blobs[WEIGHTS],
            {name: blob for name, blob in request.blobs.items() if name != WEIGHTS},
            state.vectors,
            plan,
            draws.of(names, TRAINING)(0),
            lambda theta: self._loss(theta, agents),
        )
        run = request.algorithm.local(context)
        batches = training_batches(part.data, agents, plan, draws.shuffles(names))
        tracked = part.package.spec.tracked
        trained = train_cohort(self._kernel, run, batches, len(agents), plan, tracked)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._finished(trained, run, decoded, task, agents, names, state, draws)

    def _loss(self, theta: F32, agents: Agents) -> Any:
        """Returns the mean loss of each agent over its training rows, shape (A,)."""
        found = self._kernel.evaluate(theta, *held_out_rows(self._part.data, agents, "train"))
        return found.loss / found.weight

    def _finished(
        self,
        trained: CohortTrained,
        run: LocalRun,
        decoded: DecodedPlan,
        task: PhaseTask,
        agents: Agents,
        names: Sequence[str],
        state: CohortState,
        draws: Draws,
    ) -> tuple[CohortUpdate, Declined]:
        """Encodes what a training found, and says who has no update."""
        rate = decoded.training.learning_rate
        vectors = _per_agent(
            run.finish(trained.theta, Summary(trained.steps, trained.steps * rate)), len(agents)
        )
        failures = dict(trained.failures)
        encoder = _Encoder(decoded, task.plan, draws)
        encoded = encoder.encode(vectors, state.residuals, names, failures)
        good = np.array([place not in failures for place in range(len(agents))], bool)
        arrived = {name: _spread(each.decoded, good) for name, each in encoded.items()}
        after = _per_agent(run.commit(arrived), len(agents))
        for name, vector in after.items():
            for place in np.flatnonzero(good & ~np.isfinite(vector).all(axis=1)).tolist():
                failures[place] = f"device state {name!r} is not finite: training diverged"
        kept = np.array([place not in failures for place in range(len(agents))], bool)
        residuals = {
            name: chosen_rows(_spread(each.residual, good), kept)
            for name, each in encoded.items()
            if each.residual is not None and encoder.upload(name).feedback
        }
        counts = self._part.data.num_train[agents]
        sums = trained.sums
        update = CohortUpdate(
            agents[kept],
            encoder.refs(encoded, good, kept),
            {name: _rows(each.payloads, kept[good]) for name, each in encoded.items()},
            {name: chosen_rows(vector, kept) for name, vector in arrived.items()},
            counts[kept],
            sums_table(names, sums.loss, sums.weight, sums.totals).select(kept),
            self._seconds(agents, counts, decoded)[kept],
            CohortState(residuals, {n: chosen_rows(vector, kept) for n, vector in after.items()}),
        )
        declined = {names[place]: ("training", why) for place, why in failures.items()}
        return update, declined

    def _seconds(
        self, agents: Agents, counts: NDArray[np.int64], decoded: DecodedPlan
    ) -> NDArray[np.float64]:
        different, places = np.unique(counts, return_inverse=True)
        steps = np.array([number_of_steps(n, decoded.training) for n in different.tolist()])
        seconds: NDArray[np.float64] = self._part.seconds_per_step[agents] * steps[places]
        return seconds

    def evaluate(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> Iterator[tuple[Measured, Declined]]:
        """See `Devices.evaluate`."""
        part, theta = self._part, request.blobs[WEIGHTS]
        counts = part.data.num_test[agents]
        for places in by_state(columns):
            # Agents of about as many rows together: the others' padding costs as much as rows.
            order = places[np.argsort(counts[places], kind="stable")]
            for start in range(0, len(order), self._block):
                block = order[start : start + self._block]
                chosen = agents[block]
                state = read_states(part, chosen, columns.part(block))
                own = request.algorithm.personal(theta, state.vectors)
                found = self._kernel.evaluate(own, *held_out_rows(part.data, chosen, "test"))
                names = [part.names[number] for number in chosen.tolist()]
                sums = sums_table(names, found.loss, found.weight, found.totals)
                yield Measured(chosen, sums), {}


class _Encoder:
    """Encodes the vectors of a block of agents with the codec of a plan."""

    def __init__(self, decoded: DecodedPlan, plan: RoundPlan, draws: Draws) -> None:
        self._decoded = decoded
        self._plan = plan
        self._draws = draws
        self._lossless = CODECS.make(_LOSSLESS)

    def upload(self, name: str) -> Upload:
        """Returns the kind of a vector."""
        return self._decoded.algorithm.uploads.get(name, Upload())

    def encode(
        self,
        vectors: Vectors,
        residuals: Vectors,
        names: Sequence[str],
        failures: dict[int, str],
    ) -> dict[str, EncodedMany]:
        """Returns the encoded vectors of the agents without a failure; may find more of these."""
        while True:
            good = [place for place in range(len(names)) if place not in failures]
            try:
                return self._encode(vectors, residuals, names, good)
            except CodecError:
                self._find_culprits(vectors, residuals, names, good, failures)

    def _encode(
        self, vectors: Vectors, residuals: Vectors, names: Sequence[str], good: Sequence[int]
    ) -> dict[str, EncodedMany]:
        chosen: Any = slice(None) if len(good) == len(names) else list(good)
        ids = [names[place] for place in good]
        seeds = CodecSeeds(self._plan.seed, ids)
        found = {}
        for number, (name, vector) in enumerate(vectors.items(), ROUNDING):
            upload = self.upload(name)
            residual = residuals.get(name) if upload.feedback else None
            found[name] = encode_many_with_feedback(
                self._lossless if upload.lossless else self._decoded.codec,
                np.ascontiguousarray(vector[chosen]),
                None if residual is None else residual[chosen],
                seeds,
                self._draws.of(ids, number) if ids else _nobody,
            )
        return found

    def _find_culprits(
        self,
        vectors: Vectors,
        residuals: Vectors,
        names: Sequence[str],
        good: Sequence[int],
        failures: dict[int, str],
    ) -> None:
        """Notes the agents whose vectors cannot be encoded."""
        for place in good:
            try:
                self._encode(vectors, residuals, names, [place])
            except CodecError as error:
                failures[place] = str(error)

    def refs(
        self, encoded: Mapping[str, EncodedMany], good: NDArray[np.bool_], kept: NDArray[np.bool_]
    ) -> list[dict[str, VectorRef]]:
        """Returns how to read the parts of each agent's body."""
        choices = {
            name: _LOSSLESS if self.upload(name).lossless else self._plan.codec for name in encoded
        }
        count = int(kept[good].sum())
        if count and all(isinstance(each.payloads, np.ndarray) for each in encoded.values()):
            return [_ref(encoded, 0, choices)] * count  # of one length
        return [_ref(encoded, place, choices) for place in np.flatnonzero(kept[good]).tolist()]


def _ref(
    encoded: Mapping[str, EncodedMany], place: int, choices: Mapping[str, Choice]
) -> dict[str, VectorRef]:
    return {
        name: VectorRef(
            codec=choices[name], size=each.decoded.shape[1], bytes=len(each.payloads[place])
        )
        for name, each in encoded.items()
    }


def _nobody(_: int) -> np.random.Generator:
    raise IndexError("no agents")


def _per_agent(vectors: Vectors, agents: int) -> dict[str, F32]:
    """Returns vectors with a row for each agent; one that all have alike is repeated."""
    return {
        name: np.broadcast_to(vector, (agents, vector.shape[-1]))
        for name, vector in vectors.items()
    }


def _spread(rows: F32 | None, places: NDArray[np.bool_]) -> F32:
    """Returns rows in their places among all agents, zeros elsewhere."""
    assert rows is not None, "checked"
    if places.all():
        return rows
    found = np.zeros((len(places), rows.shape[1]), np.float32)
    found[places] = rows
    return found


def _rows(payloads: Any, kept: NDArray[np.bool_]) -> Any:
    if kept.all():
        return payloads
    if isinstance(payloads, np.ndarray):
        return payloads[kept]
    return [payload for payload, is_kept in zip(payloads, kept, strict=True) if is_kept]
