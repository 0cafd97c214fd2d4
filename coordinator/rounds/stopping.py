"""Conditions that end a federation."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.config import CoordinatorConfig, StopConfig
from coordinator.records.records import RoundRecord, falls


def stop_reason(config: CoordinatorConfig, records: Sequence[RoundRecord]) -> str | None:
    """`rounds`, `target` or `patience`; None to go on.

    Abandoned rounds do not count; rounds that were not evaluated say nothing about the metric.
    """
    committed = [record for record in records if record.status == "committed"]
    if len(committed) >= config.rounds:
        return "rounds"
    # What was seen while training says something else: it counts where nothing is evaluated.
    central = config.stop.metric.startswith("central_")
    anyhow = central or not config.evaluation.every
    told = [record for record in committed if record.evaluated or anyhow]
    found = (record.value(config.stop.metric) for record in told)
    values = [value for value in found if value is not None]
    if values and _reached(config.stop, values[-1]):
        return "target"
    if config.stop.patience and _rounds_without_gain(config.stop, values) >= config.stop.patience:
        return "patience"
    return None


def _reached(stop: StopConfig, value: float) -> bool:
    if stop.target is None:
        return False
    return value <= stop.target if falls(stop.metric) else value >= stop.target


def _rounds_without_gain(stop: StopConfig, values: Sequence[float]) -> int:
    if not values:
        return 0
    sign = 1.0 if falls(stop.metric) else -1.0
    costs = [sign * value for value in values]
    return len(costs) - 1 - costs.index(min(costs))
