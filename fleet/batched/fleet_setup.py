"""A fleet as every process of a simulation sees it: cut into parts, the same whoever works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from edge_agent.training.local_device import LocalModel
from fedge.plugins import load_plugins
from fleet.batched.cohort.agent_data import AgentData
from fleet.batched.cohort.device_states import DeviceStates
from fleet.batched.cohort.devices import Part
from fleet.batched.cohort.part_work import work
from fleet.batched.cohort.task import Mode, PartAnswer, PhaseTask
from fleet.batched.cohort.training import Kernel
from fleet.batched.mode import KernelKind
from learning.algorithms.algorithm import Weighting
from learning.registry import Choice
from learning.vector.parameters import F64
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.vectorized.program import VectorizedProgram

#: Agents of a part: few enough to be done again when a process is lost, many enough to be worth a
#: message.
_LARGEST_PART = 16_384
_SMALLEST_PART = 64
_PARTS = 32


def part_bounds(agents: int) -> list[tuple[int, int]]:
    """Returns the first agent of each part and the one behind its last.

    By the number of agents alone: sums are added in the order of the parts, and so the result is
    the same whoever works on them.
    """
    size = min(_LARGEST_PART, max(_SMALLEST_PART, -(-agents // _PARTS)))
    return [(start, min(start + size, agents)) for start in range(0, agents, size)]


@dataclass(frozen=True, eq=False)
class FleetSetup:
    """Everything that the parts of a fleet work with. Can be pickled once its data are on disk.

    Attributes:
        package: the model.
        names: ids of all agents.
        data: their rows; None: `folder` has them.
        folder: of the rows, when they were written for other processes, and of states.
        seconds_per_step: virtual time of a training step of each agent.
        mode: see `Mode`.
        kernel: how the model runs; see `KernelKind`.
        why: the kernel was chosen.
        aggregator: of the federation.
        weighting: likewise.
        plugins: files that every process loads.
    """

    package: ModelPackage
    names: Sequence[str]
    data: AgentData | None
    folder: Path
    seconds_per_step: F64
    mode: Mode
    kernel: KernelKind
    why: str
    aggregator: Choice
    weighting: Weighting
    plugins: tuple[Path, ...] = ()

    @property
    def rows_folder(self) -> Path:
        """Where the rows are for other processes."""
        return self.folder / "rows"

    @property
    def states_folder(self) -> Path:
        """Where the agents' states are, a folder for each part."""
        return self.folder / "devices"

    def for_processes(self) -> FleetSetup:
        """Writes the rows to disk; returns the setup for other processes, which map them."""
        if self.data is not None:
            self.data.save(self.rows_folder)
        return replace(self, data=None)  # without what this process has loaded

    def prepare(self) -> None:
        """Loads what a new process lacks."""
        load_plugins(self.plugins, Path(), "")

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """Bounds of the parts; see `part_bounds`."""
        return part_bounds(len(self.names))

    def work(self, number: int, task: PhaseTask) -> PartAnswer:
        """Returns the answer of a part."""
        return work(self._part(number), task, self.aggregator, self.weighting)

    def _part(self, number: int) -> Part:
        start, stop = self.bounds[number]
        data = self._all_rows
        part = AgentData(
            data.arrays, data.index, data.offsets[start : stop + 1], data.num_train[start:stop]
        )
        return Part(
            number,
            self.names[start:stop],
            part,
            DeviceStates(self.states_folder / str(number), stop - start),
            self.seconds_per_step[start:stop],
            self.package,
            self.model,
            self._kernel,
            self.mode,
        )

    @cached_property
    def _all_rows(self) -> AgentData:
        return AgentData.load(self.rows_folder) if self.data is None else self.data

    @cached_property
    def model(self) -> LocalModel:
        """The model, loaded in this process."""
        package = self.package
        program = Program(package.program, package.spec, frozen=package.frozen)
        return LocalModel(program, package.personal)

    @cached_property
    def _kernel(self) -> Kernel | None:
        if self.kernel == "single":
            return None
        package = self.package
        return VectorizedProgram(
            package.program,
            package.spec,
            frozen=package.frozen,
            any_rows=self.kernel == "vectorized",
        )
