"""How updates become one mean update."""

from coordinator.aggregation.aggregator import Aggregator
from coordinator.aggregation.mean import WeightedMean
from coordinator.aggregation.registry import AGGREGATORS, make_aggregator

__all__ = ["AGGREGATORS", "Aggregator", "WeightedMean", "make_aggregator"]
