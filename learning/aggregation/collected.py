"""Base of the aggregators that need every update at once: rows kept until the round ends.

Memory is 4 bytes per parameter and update, capped by `max_bytes`. Results are made in blocks of
columns, which take at most 2 MiB beside the rows and the result (of more than 262,144 updates:
8 bytes for each).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta

from fedge.errors import ConfigError, TrainingError
from learning.aggregation.aggregator import Update, check_update
from learning.algorithms.algorithm import Aggregate
from learning.registry import Settings
from learning.vector.parameters import F32, F64

#: Values sorted at a time: a block of 1 MiB stays in a core's second-level cache.
BLOCK = 1 << 18


class CollectedSettings(Settings, frozen=True):
    """Settings of aggregators that keep every update.

    Attributes:
        max_bytes: the most memory for the updates of a round; 512 MiB hold 1,342 updates of
            100,000 parameters.
    """

    max_bytes: Annotated[int, Meta(ge=1)] = 512 << 20


class Collected(ABC):
    """Keeps every update as float32 rows; a subclass says how a sorted column becomes a number.

    All updates count alike: a weight is what a device says of itself, so a hostile one could
    outweigh all others. Only those of weight 0 are ignored, for each vector by its own weight.

    Raises:
        ConfigError: (constructor) not even one update fits into `max_bytes`.
    """

    needs: Literal["sum", "all"] = "all"

    settings_type: ClassVar[type[Settings]]

    def __init__(self, settings: CollectedSettings, sizes: Mapping[str, int]) -> None:
        self._max_bytes = settings.max_bytes
        self._sizes = dict(sizes)
        needed = np.dtype(np.float32).itemsize * sum(sizes.values())
        self._capacity = self._max_bytes // max(needed, 1)
        if not self._capacity:
            raise ConfigError(
                f"aggregator {settings.name} keeps every update: one has {needed} bytes, more than "
                f"max_bytes {self._max_bytes}; raise max_bytes or use aggregator mean"
            )
        self._rows: dict[str, list[F32]] = {name: [] for name in sizes}
        self._weight = 0.0
        self._count = 0

    @property
    def capacity(self) -> int | None:
        """Updates that `max_bytes` holds, with all their vectors."""
        return self._capacity

    def add(self, update: Update) -> None:
        """Keeps a copy of one update; see `Aggregator.add`."""
        check_update(update, self._sizes)
        self._check_room(1, f"update of {update.agent_id} is number {self._count + 1}")
        for name, rows in self._rows.items():
            if update.weights[name] > 0:
                rows.append(update.vectors[name].copy())
        self._weight += update.weights[next(iter(self._sizes))]
        self._count += 1

    def merge(self, other: Collected) -> None:
        """Takes the rows of another one; see `Aggregator`."""
        self._check_room(other._count, f"{other._count} updates beside {self._count}")
        for name, rows in self._rows.items():
            rows += other._rows[name]
        self._weight += other._weight
        self._count += other._count

    def _check_room(self, count: int, what: str) -> None:
        if self._count + count > self._capacity:
            raise ValueError(
                f"{what}, max_bytes {self._max_bytes} holds {self._capacity}: raise "
                "aggregator.max_bytes or ask fewer agents"
            )

    def result(self, population: int) -> Aggregate:
        """Every column's number; see `Aggregator.result`. `weight` is the first vector's."""
        if not all(self._rows.values()):
            raise TrainingError("no aggregate: the weights of the round's updates sum to 0")
        vectors = {name: self._reduce(rows, self._sizes[name]) for name, rows in self._rows.items()}
        return Aggregate(vectors, self._weight, self._count, population)

    def _reduce(self, rows: Sequence[F32], size: int) -> F32:
        found = np.empty(size, np.float32)
        width = max(1, min(size, BLOCK // max(len(rows), 8)))
        buffer = np.empty((len(rows), width), np.float32)
        for start in range(0, size, width):
            block = buffer[:, : size - start]
            np.stack([row[start : start + width] for row in rows], out=block)
            # Sorted whole, for cohorts of 10 to 100: 2 to 5 times as fast as np.partition or
            # np.median where NumPy has vector instructions for it (AVX-512), much alike elsewhere.
            block.sort(axis=0)
            found[start : start + width] = self.reduce_sorted(block)
        return found

    @abstractmethod
    def reduce_sorted(self, block: F32) -> F64:
        """The result of each column of [n, columns], n at least 1, each column in rising order.

        In float64: the sum of two float32 numbers may be beyond float32.
        """
