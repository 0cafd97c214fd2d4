"""The round protocol of each task in a coordinator's configuration."""

from __future__ import annotations

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.rounds.protocol import Agents, RoundProtocol
from coordinator.rounds.statistics import StatisticsRound
from coordinator.rounds.train_then_evaluate import TrainThenEvaluate
from learning.algorithms.algorithm import Algorithm
from models.package.spec import ModelSpec


def make_round_protocol(
    config: CoordinatorConfig, spec: ModelSpec, algorithm: Algorithm, agents: Agents
) -> RoundProtocol:
    """Returns the protocol that chains the phases of this federation's rounds."""
    if name_of(config.task) == "statistics":
        return StatisticsRound(config, spec, agents)
    return TrainThenEvaluate(config, spec, algorithm, agents)
