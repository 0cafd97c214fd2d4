"""How updates become one mean update."""

from learning.aggregation.aggregator import Aggregator
from learning.aggregation.mean import WeightedMean
from learning.aggregation.registry import AGGREGATORS, make_aggregator

__all__ = ["AGGREGATORS", "Aggregator", "WeightedMean", "make_aggregator"]
