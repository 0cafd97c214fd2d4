"""Choice of how a fleet is simulated, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError, ModelError
from learning.aggregation.aggregator import Mergeable
from learning.aggregation.registry import AGGREGATORS
from models.package.package import ModelPackage
from models.vectorized.program import VectorizedProgram

#: `exact`: every message of every agent is an event. The others: see `fleet.batched.task.Mode`.
SimulationMode = Literal["exact", "bytes", "arrays"]
#: Agents and rounds up to which the exact simulation takes seconds.
_FEW = 2_000
#: Agents up to which real frames take little beside the training.
_SOME = 10_000


@dataclass(frozen=True)
class Choice:
    """How a fleet is simulated.

    Attributes:
        mode: of the simulation.
        vectorized: whether agents train many in one call.
        why: in words, for people.
    """

    mode: SimulationMode
    vectorized: bool
    why: str


def choose(
    wanted: str,
    config: CoordinatorConfig,
    package: ModelPackage,
    agents: int,
    exact_features: list[str],
) -> Choice:
    """Returns how to simulate a federation.

    Args:
        wanted: a mode, or "auto".
        config: of the federation.
        package: its model.
        agents: number of agents.
        exact_features: options that only the exact simulation has, as the user gave them.

    Raises:
        ConfigError: the wanted mode cannot do what is asked.
    """
    obstacle = _obstacle(config, package)
    if wanted == "auto":
        if exact_features:
            return Choice("exact", False, f"{exact_features[0]} needs every message")
        if obstacle:
            return Choice("exact", False, obstacle)
        if agents * config.rounds <= _FEW:
            return Choice("exact", False, f"{agents} agents and {config.rounds} rounds are few")
        wanted = "bytes" if agents <= _SOME else "arrays"
    if wanted == "exact":
        return Choice("exact", False, "as asked")
    if exact_features or obstacle:
        why = f"{exact_features[0]} needs every message" if exact_features else obstacle
        raise ConfigError(f"--mode {wanted}: {why}; take --mode exact")
    mode: SimulationMode = "bytes" if wanted == "bytes" else "arrays"
    why_not = _why_not_vectorized(package)
    how = f"each agent trains by itself: {why_not}" if why_not else "agents train many in one call"
    return Choice(mode, not why_not, how)


def _obstacle(config: CoordinatorConfig, package: ModelPackage) -> str:
    """Returns why a federation has no cohorts, in words; empty when it has."""
    if name_of(config.task) != "train":
        return f"task {name_of(config.task)} trains nothing"
    if config.cohort.over_select > 1:
        return "cohort.over_select: who is late depends on every message"
    sizes = {"delta": package.spec.size}
    if not isinstance(AGGREGATORS.make(config.aggregator, sizes), Mergeable):
        return f"aggregator {name_of(config.aggregator)} has no merge"
    return ""


def _why_not_vectorized(package: ModelPackage) -> str:
    spec = package.spec
    if spec.stochastic or spec.personal is not None:
        return "the model draws random numbers, or has personal layers"
    try:
        VectorizedProgram(package.program, spec, frozen=package.frozen)
    except ModelError as error:
        return str(error)
    return ""
