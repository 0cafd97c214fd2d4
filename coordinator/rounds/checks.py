"""Checks of a federation's configuration against its model."""

from __future__ import annotations

import logging
import math

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError
from learning.aggregation.aggregator import Aggregator
from learning.aggregation.registry import AGGREGATORS
from learning.aggregation.trimmed_mean import TrimmedMeanSettings
from learning.algorithms.algorithm import Algorithm
from models.package.spec import ModelSpec

log = logging.getLogger(__name__)


def check_model(config: CoordinatorConfig, spec: ModelSpec, algorithm: Algorithm) -> None:
    """Checks what of a configuration depends on the model.

    Raises:
        ConfigError: `stop.metric` is none of the model, its BatchNormalization cannot take the
            steps, or the aggregator cannot hold the updates of the smallest round.
    """
    _check_metric(config.stop.metric, spec)
    _check_steps(config, spec)
    _check_capacity(config, spec, algorithm)


def _check_metric(metric: str, spec: ModelSpec) -> None:
    plain = ("loss", *(m.name for m in spec.metrics if m.kind != "confusion"))
    known = [*plain, *(f"unseen_{name}" for name in plain), *(f"central_{name}" for name in plain)]
    if metric not in known:
        raise ConfigError(f"stop.metric: {metric!r} is none of {spec.name}: {', '.join(known)}")


def _check_steps(config: CoordinatorConfig, spec: ModelSpec) -> None:
    if not _trains(config):
        return
    batch_size = config.training.batch_size
    if problem := spec.step_problem(batch_size):
        raise ConfigError(f"training.batch_size: {problem}")
    limit = max(spec.batch_sizes)
    if batch_size == 0 and spec.step_problem(limit + 1):
        log.warning(
            "training.batch_size is 0, all rows in one step: agents that learn from more than %d "
            "rows decline, because %s has BatchNormalization and its program takes %d rows a call; "
            "set 1 to %d, or export the model with a larger --batch-size",
            limit, spec.name, limit, limit, extra={"event": "batch_normalization"},
        )  # fmt: skip


def _check_capacity(config: CoordinatorConfig, spec: ModelSpec, algorithm: Algorithm) -> None:
    sizes = {name: upload.size(spec.size) for name, upload in algorithm.uploads.items()}
    aggregator: Aggregator = AGGREGATORS.make(config.aggregator, sizes)
    needed = max(config.round.minimum, config.cohort.at_least)
    if aggregator.capacity is not None and aggregator.capacity < needed:
        raise ConfigError(
            f"aggregator: {name_of(config.aggregator)} holds {aggregator.capacity} updates of "
            f"{spec.size} parameters, a round needs {needed}; raise "
            "aggregator.max_bytes or take aggregator mean"
        )


def untrimmed(config: CoordinatorConfig) -> str:
    """Returns a warning when trimmed_mean would trim nothing in the smallest round; else ""."""
    aggregator = AGGREGATORS.settings(config.aggregator, key="aggregator")
    if not _trains(config) or not isinstance(aggregator, TrimmedMeanSettings):
        return ""
    fraction, minimum = aggregator.fraction, config.round.minimum
    if int(fraction * minimum + 1e-9):  # 0.29 × 100 is 28.999999999999996
        return ""
    advice = (
        f"set round.minimum to {math.ceil(1 / fraction - 1e-9)}" if fraction else "raise fraction"
    )
    return (
        f"aggregator trimmed_mean with fraction {fraction:g} leaves nothing out of a round of "
        f"round.minimum {minimum}, one hostile agent can decide it: {advice}"
    )


def _trains(config: CoordinatorConfig) -> bool:
    return name_of(config.task) == "train"
