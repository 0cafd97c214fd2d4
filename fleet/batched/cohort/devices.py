"""Work of the devices of a cohort: all in one call, or each by the code that runs on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from broker.protocol.messages import RoundPlan
from broker.protocol.seeds import Streams, codec_seed, stream
from edge_agent.machine.decoded_plan import DecodedPlan, decode_plan
from edge_agent.training.local_device import LocalModel
from edge_agent.training.local_task import TRAINING
from fleet.batched.cohort.agent_data import AgentData
from fleet.batched.cohort.batches import CommonShuffles, OwnShuffles, Shuffles
from fleet.batched.cohort.cohort_update import CohortUpdate
from fleet.batched.cohort.device_states import CohortState, DeviceStates
from fleet.batched.cohort.task import Columns, Mode, PhaseTask
from fleet.batched.cohort.training import Kernel
from learning.codecs.many import CommonRng, RngOf
from learning.phases.phase import WEIGHTS, Request
from learning.vector.parameters import F64
from learning.vector.sums_table import SumsTable
from learning.vector.vectors import Vectors
from models.package.package import ModelPackage

Agents = NDArray[np.int64]
S = TypeVar("S", bound=np.generic)
#: Why an agent has no answer: reason and words, by its id.
Declined = dict[str, tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a fleet: a range of agents, and what they work with.

    Attributes:
        number: of the part.
        names: ids of its n agents.
        data: their rows.
        states: what they remember.
        seconds_per_step: virtual time of a training step, shape (n,).
        package: the model.
        model: the same, loaded.
        kernel: runs it for many agents at a time; None: each agent runs it.
        mode: see `Mode`.
    """

    number: int
    names: Sequence[str]
    data: AgentData
    states: DeviceStates
    seconds_per_step: F64
    package: ModelPackage
    model: LocalModel
    kernel: Kernel | None
    mode: Mode


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements of n agents on their held-out rows.

    Attributes:
        agents: numbers of the agents, shape (n,).
        sums: their names are the agents' ids.
    """

    agents: Agents
    sums: SumsTable


class Devices(Protocol):
    """Does the devices' work of a phase."""

    def train(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> Iterator[tuple[CohortUpdate, Declined]]:
        """Yields the updates of some agents, a block at a time.

        Args:
            request: of the plan.
            task: of the phase.
            agents: numbers of agents with training rows.
            columns: of these agents.
        """

    def evaluate(
        self, request: Request, task: PhaseTask, agents: Agents, columns: Columns
    ) -> Iterator[tuple[Measured, Declined]]:
        """Yields the measurements of some agents with held-out rows, a block at a time."""


class Draws:
    """Random numbers of a phase's agents.

    With real frames each agent has the streams that its own device would have; else all agents of
    a block draw from one stream.
    """

    def __init__(self, mode: Mode, plan: RoundPlan) -> None:
        self._mode = mode
        self._seed = plan.seed
        self._streams = Streams()

    def of(self, names: Sequence[str], number: int) -> RngOf:
        """Returns the generator of each agent of a block.

        Args:
            names: of the agents.
            number: of the stream.
        """
        if self._mode == "bytes":
            return lambda place: self._streams.at(self._seed, names[place], number)
        return CommonRng(self._common(names, number))

    def shuffles(self, names: Sequence[str]) -> Shuffles:
        """Returns the orders of rows of a block's agents."""
        if self._mode == "bytes":
            return OwnShuffles(self.of(names, TRAINING))
        return CommonShuffles(self._common(names, TRAINING))

    def _common(self, names: Sequence[str], number: int) -> np.random.Generator:
        return stream(self._seed, f"{names[0]}+{len(names)}", number)


class CodecSeeds(Sequence[int]):
    """Seeds of the codecs of a block's agents, made when asked for: most codecs need none.

    Args:
        round_seed: of the plan.
        names: of the agents.
    """

    def __init__(self, round_seed: int, names: Sequence[str]) -> None:
        self._round_seed = round_seed
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...

    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        if isinstance(place, slice):
            return CodecSeeds(self._round_seed, self._names[place])
        return codec_seed(self._round_seed, self._names[place])


def chosen_rows(rows: NDArray[S], chosen: NDArray[np.bool_]) -> NDArray[S]:
    """Returns the rows of a mask: the array itself, not a copy, where that is all of them."""
    return rows if chosen.all() else rows[chosen]


def by_state(columns: Columns) -> list[Agents]:
    """Returns places of agents without a state, and of those with one: an algorithm sees either."""
    has = columns.slots > 0
    return [places for places in (np.flatnonzero(~has), np.flatnonzero(has)) if len(places)]


def read_states(part: Part, agents: Agents, columns: Columns) -> CohortState:
    """Returns the states of agents that are alike in having one; see `by_state`."""
    if not columns.slots.any():
        return CohortState({}, {})
    return part.states.read(agents, columns.slots)


def request_of(plan: RoundPlan, vectors: Vectors) -> tuple[DecodedPlan, Request]:
    """Returns the decoded plan and its request."""
    decoded = decode_plan(plan)
    needed = {name: vectors[name] for name in (WEIGHTS, *decoded.blob_names) if name in vectors}
    return decoded, Request(needed, decoded.algorithm, decoded.training)


def sums_table(
    names: Sequence[str], loss: F64, weight: F64, totals: Mapping[str, F64]
) -> SumsTable:
    """Returns sums of agents, those of a metric flat."""
    flat = {
        name: values if values.ndim == 1 else values.reshape(len(values), -1)
        for name, values in totals.items()
    }
    return SumsTable(names, loss, weight, flat)
