"""Every aggregator by its name in configurations."""

from __future__ import annotations

from learning.aggregation.aggregator import Aggregator
from learning.aggregation.mean import WeightedMean
from learning.aggregation.median import Median
from learning.aggregation.trimmed_mean import TrimmedMean
from learning.registry import Registry

AGGREGATORS: Registry[Aggregator] = Registry("aggregator", WeightedMean, Median, TrimmedMean)
