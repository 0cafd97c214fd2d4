"""Choice of how a fleet is simulated, and the reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from fedge.console import counted
from fedge.errors import ConfigError, ModelError
from fleet.batched.cohort.agent_data import AgentData
from learning.aggregation.aggregator import Mergeable
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.training import TrainingPlan
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.runtime.rows import Rows
from models.vectorized.kernel import VectorizedProgram, choose_kernel, kernel_reason

#: `exact`: every message of every agent is an event. The others: see `fleet.batched.cohort.task`.
SimulationMode = Literal["exact", "bytes", "arrays"]
#: `single`: each agent trains by the code of a device. `vectorized`: many in one call. `padded`:
#: likewise, in calls of as many rows as the program was made for.
KernelKind = Literal["single", "vectorized", "padded"]

#: Agents times rounds up to which the exact simulation takes seconds.
_FEW = 2_000
#: Agents up to which real frames take little beside the training.
_SOME = 10_000
#: Agents whose rows a kernel is tried with.
_SAMPLE = 4


@dataclass(frozen=True)
class Choice:
    """A choice, and the reason in words.

    Attributes:
        mode: of the simulation.
        why: for people.
    """

    mode: SimulationMode
    why: str


@dataclass(frozen=True)
class KernelChoice:
    """How the model runs, and the reason in words."""

    kind: KernelKind
    why: str


def choose_mode(
    wanted: str, config: CoordinatorConfig, agents: int, exact_features: Sequence[str]
) -> Choice:
    """Returns how to simulate a federation.

    Args:
        wanted: a mode, or "auto".
        config: of the federation.
        agents: number of agents.
        exact_features: options that only the exact simulation has, as the user gave them.

    Raises:
        ConfigError: the wanted mode cannot do what is asked.
    """
    why = f"{exact_features[0]} needs every message" if exact_features else _obstacle(config)
    if wanted == "exact" or (wanted == "auto" and why):
        return Choice("exact", why or "as asked")
    if why:
        raise ConfigError(f"--mode {wanted}: {why}; take --mode exact")
    if wanted == "bytes":
        return Choice("bytes", "as asked")
    if wanted == "arrays":
        return Choice("arrays", "as asked")
    if agents * config.rounds <= _FEW:
        amount = f"{counted(agents, 'agent')} in {counted(config.rounds, 'round')}"
        return Choice("exact", f"{amount} are few enough")
    if agents <= _SOME:
        return Choice("bytes", f"{agents:,} agents without faults")
    return Choice("arrays", f"{agents:,} agents without faults: sizes stand for bytes")


def _obstacle(config: CoordinatorConfig) -> str:
    """Returns why a federation has no cohorts, in words; empty when it has."""
    if name_of(config.task) != "train":
        return f"task {name_of(config.task)} trains nothing"
    if config.cohort.over_select > 1:
        return "cohort.over_select: who is late depends on every message"
    if not isinstance(AGGREGATORS.make(config.aggregator, {"delta": 1}), Mergeable):
        return f"aggregator {name_of(config.aggregator)} has no merge"
    return ""


def choose_kernel_kind(
    wanted: str, package: ModelPackage, program: Program, data: AgentData, training: TrainingPlan
) -> KernelChoice:
    """Returns how the model runs: for many agents in one call, where that is right and faster.

    Args:
        wanted: "auto", "vectorized" or "single".
        package: the model.
        program: of it.
        data: rows of all agents; some are tried.
        training: of the federation.

    Raises:
        ConfigError: the model cannot be vectorized, and that was asked for.
    """
    if wanted == "single":
        return KernelChoice("single", "each agent trains by itself, as asked")
    spec = package.spec
    if spec.personal is not None or data.is_weighted:
        what = "personal layers" if spec.personal is not None else "weights of rows"
        return _single(wanted, f"{what}: each agent trains by itself")
    rows = _sample(data, training)
    if not rows:
        return _single(wanted, "no rows to train on")
    kernel = choose_kernel(package, program, rows)
    count = next(iter(rows.values())).shape[1]
    why = kernel_reason(package, count)
    if kernel is None and wanted == "vectorized":
        try:
            kernel = VectorizedProgram(package.program, spec, frozen=package.frozen)
        except ModelError as error:
            return _single(wanted, str(error))
    if kernel is None:
        return KernelChoice("single", why)
    return KernelChoice("vectorized" if kernel.any_rows else "padded", why)


def _single(wanted: str, why: str) -> KernelChoice:
    if wanted == "vectorized":
        raise ConfigError(f"--kernel vectorized: {why}; take --kernel single")
    return KernelChoice("single", why)


def _sample(data: AgentData, training: TrainingPlan) -> Rows:
    """Returns a batch of a few agents that have one, shape (A, B, *shape) by column."""
    able = np.flatnonzero(data.num_train > 0)
    if not len(able):
        return {}
    middle = int(np.median(data.num_train[able]))
    size = min(training.batch_size or middle, middle)
    agents = able[data.num_train[able] >= size][:_SAMPLE]
    places = data.starts("train")[agents][:, None] + np.arange(size)
    return {name: array[data.index[places]] for name, array in data.arrays.items()}
