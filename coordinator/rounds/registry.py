"""The round protocol of each task in a coordinator's configuration."""

from __future__ import annotations

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.rounds.protocol import Agents, RoundProtocol
from coordinator.rounds.single_phase import SinglePhase
from coordinator.rounds.statistics import StatisticsRound
from coordinator.rounds.train_then_evaluate import TrainThenEvaluate
from learning.algorithms.algorithm import Algorithm
from learning.phases.registry import PHASES
from models.package.spec import ModelSpec


def make_round_protocol(
    config: CoordinatorConfig, spec: ModelSpec, algorithm: Algorithm, agents: Agents
) -> RoundProtocol:
    """Returns the protocol that chains the phases of this federation's rounds."""
    match name_of(config.task):
        case "train":
            return TrainThenEvaluate(config, spec, algorithm, agents)
        case "statistics":
            return StatisticsRound(config, spec, agents)
        case _:
            settings = PHASES.settings(config.task, key="task")
            return SinglePhase(config, settings, agents)
