"""Conditions that end a federation."""

from __future__ import annotations

from coordinator.config import CoordinatorConfig
from coordinator.records.course import Course, Rule


def stop_rule(config: CoordinatorConfig) -> Rule:
    """Returns which figure stops a federation, and says which of its versions is the best."""
    return Rule(config.stop.metric, while_training=not config.evaluation.every)


def stop_reason(config: CoordinatorConfig, course: Course) -> str | None:
    """`rounds`, `target` or `patience`; None to go on.

    Abandoned rounds do not count; rounds that were not evaluated say nothing about the metric.
    """
    stop = config.stop
    if course.committed >= config.rounds:
        return "rounds"
    if stop.target is not None and course.value is not None:
        missed = course.rule.is_better(stop.target, course.value)
        if not missed:
            return "target"
    if stop.patience and course.without_gain >= stop.patience:
        return "patience"
    return None
