"""The weighted mean of a cohort's vectors, as a stream.

Memory is one float64 vector for each and 512 KiB, whatever the cohort. A float64 sum carries 29
bits more than the float32 result keeps: the order of arrival changes the last bit of a parameter
about once in 2**29 / √cohort, where a float32 sum would change most of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from fedge.errors import TrainingError
from learning.aggregation.aggregator import Update, Updates, check_update
from learning.algorithms.algorithm import Aggregate
from learning.registry import Settings
from learning.vector.parameters import F32, F64

#: Elements folded at a time: their float64 copy (512 KiB) stays in a core's second-level cache.
#: The fastest of 4 Ki to 256 Ki on x86-64 with 1 MiB of it; 32 Ki is 5 % slower, 8 Ki 30 %.
PIECE = 65_536


class MeanSettings(Settings, frozen=True, tag="mean"):
    """The mean has none."""


class WeightedMean:
    """Σ weight × vector / Σ weight; see `Aggregator`."""

    needs: Literal["sum", "all"] = "sum"
    capacity: int | None = None

    settings_type: ClassVar[type[Settings]] = MeanSettings

    def __init__(self, settings: MeanSettings, sizes: Mapping[str, int]) -> None:
        del settings
        self._sizes = dict(sizes)
        self._sums = {name: np.zeros(size, np.float64) for name, size in sizes.items()}
        self._weights = dict.fromkeys(sizes, 0.0)
        self._piece = np.empty(min(max(sizes.values()), PIECE), np.float64)
        self._count = 0

    def add(self, update: Update) -> None:
        """Folds one update in; see `Aggregator.add`."""
        check_update(update, self._sizes)
        for name, vector in update.vectors.items():
            self._fold(self._sums[name], vector, update.weights[name])
            self._weights[name] += update.weights[name]
        self._count += 1

    def _fold(self, total: F64, vector: F32, weight: float) -> None:
        for start in range(0, vector.size, PIECE):
            part = total[start : start + PIECE]
            piece = self._piece[: part.size]
            # Three passes in cache beat one mixed-type expression, which numpy buffers.
            np.copyto(piece, vector[start : start + PIECE])
            np.multiply(piece, weight, out=piece)
            np.add(part, piece, out=part)

    def add_many(self, updates: Updates) -> None:
        """Folds a cohort's updates in; see `Aggregator`."""
        for name, vectors in updates.vectors.items():
            weights = updates.weights[name]
            width = max(1, PIECE // max(1, len(vectors)))
            for start in range(0, vectors.shape[1], width):
                part = slice(start, start + width)
                self._sums[name][part] += weights @ vectors[:, part].astype(np.float64)
            self._weights[name] += float(weights.sum())
        self._count += len(updates.agent_ids)

    def merge(self, other: WeightedMean) -> None:
        """Adds the sums of another one; see `Aggregator`."""
        for name, total in other._sums.items():
            self._sums[name] += total
            self._weights[name] += other._weights[name]
        self._count += other._count

    def result(self, population: int) -> Aggregate:
        """The weighted means so far; see `Aggregator.result`."""
        if not all(weight > 0 for weight in self._weights.values()):
            raise TrainingError("no mean: the weights of the round's updates sum to 0")
        means = {
            name: (total / self._weights[name]).astype(np.float32)
            for name, total in self._sums.items()
        }
        return Aggregate(means, next(iter(self._weights.values())), self._count, population)
