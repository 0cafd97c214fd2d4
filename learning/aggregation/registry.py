"""Every aggregator by its name in configurations."""

from __future__ import annotations

from collections.abc import Callable

from fedge.errors import ConfigError
from learning.aggregation.aggregator import Aggregator
from learning.aggregation.mean import WeightedMean

#: Name in a configuration -> class; called with P.
AGGREGATORS: dict[str, Callable[[int], Aggregator]] = {"mean": WeightedMean}


def make_aggregator(name: str, size: int) -> Aggregator:
    """A fresh aggregator for one round of deltas of length `size`.

    Raises:
        ConfigError: no aggregator has that name.
    """
    aggregator = AGGREGATORS.get(name)
    if aggregator is None:
        known = ", ".join(AGGREGATORS)
        raise ConfigError(f"unknown aggregator {name!r}; known aggregators: {known}")
    return aggregator(size)
