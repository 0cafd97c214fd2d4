"""Aggregator: a round's updates go in one by one, one aggregate comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np

from learning.algorithms.algorithm import Aggregate
from learning.registry import Settings
from learning.vector.parameters import F64
from learning.vector.vectors import Vectors


class Update(msgspec.Struct, frozen=True, eq=False):
    """One agent's decoded update.

    Attributes:
        agent_id: whose it is.
        vectors: float32, finite, by name, of the lengths that the aggregator was made for.
        weights: by the vectors' names, 0 to 1e18: rows, so that every example counts alike (McMahan
            et al. 2017, Algorithm 1), or 1, so that no device with a lot of data decides alone.
    """

    agent_id: str
    vectors: Vectors
    weights: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Updates:
    """Decoded updates of a cohort.

    Attributes:
        agent_ids: of the n agents.
        vectors: float32, finite, [n, length], by name.
        weights: float64, [n], by the vectors' names; see `Update.weights`.
    """

    agent_ids: Sequence[str]
    vectors: Vectors
    weights: Mapping[str, F64]

    def __iter__(self) -> Iterator[Update]:
        for number, agent_id in enumerate(self.agent_ids):
            yield Update(
                agent_id,
                {name: vectors[number] for name, vectors in self.vectors.items()},
                {name: float(weights[number]) for name, weights in self.weights.items()},
            )


class Aggregator(Protocol):
    """One round's updates, taken as they are accepted. Not thread-safe.

    The constructor takes the settings and the length of each vector by name.

    Optional: `merge(other)` takes all updates of another aggregator of the same settings and
    lengths, so that a simulated cohort can be cut into parts; and `add_many(updates)` takes a
    cohort's `Updates`, as `add` one by one.

    Attributes:
        needs: "sum": a stream, memory O(P), also where only sums can be had (secure aggregation);
            "all": every update is kept until the round ends.
    """

    settings_type: ClassVar[type[Settings]]
    needs: ClassVar[Literal["sum", "all"]]

    @property
    def capacity(self) -> int | None:
        """The most updates it can hold; None: any number."""

    def add(self, update: Update) -> None:
        """Takes one update; its arrays are not kept and may be reused.

        Raises:
            ValueError: other names, another shape or dtype, a weight out of range, or it is full.
        """

    def result(self, population: int) -> Aggregate:
        """The aggregate so far, of new arrays.

        Args:
            population: agents that could have been asked.

        Raises:
            TrainingError: no update, or only updates of weight 0: the round cannot be committed.
        """


@runtime_checkable
class Mergeable(Protocol):
    """An aggregator that can be cut into parts."""

    def merge(self, other: Any) -> None:
        """Takes all updates of `other`, which is not used any more.

        Raises:
            ValueError: there is no room for them.
        """


def add_many(aggregator: Aggregator, updates: Updates) -> None:
    """Gives an aggregator a cohort's updates, at once where it takes them so.

    Raises:
        ValueError: see `Aggregator.add`.
    """
    at_once = getattr(aggregator, "add_many", None)
    if at_once is not None:
        at_once(updates)
        return
    for update in updates:
        aggregator.add(update)


def check_update(update: Update, sizes: Mapping[str, int]) -> None:
    """Raises ValueError unless names, shapes, dtypes and weights are as expected."""
    vectors = update.vectors
    if vectors.keys() != sizes.keys() or not all(
        vector.dtype == _FLOAT32 and vector.shape == (sizes[name],)
        for name, vector in vectors.items()
    ):
        found = {name: (str(v.dtype), v.shape) for name, v in vectors.items()}
        wanted = {name: ("float32", (size,)) for name, size in sizes.items()}
        raise ValueError(f"update of {update.agent_id} holds {found}, expected {wanted}")
    if update.weights.keys() != sizes.keys():
        raise ValueError(
            f"update of {update.agent_id} has weights of {sorted(update.weights)}, "
            f"expected {sorted(sizes)}"
        )
    for weight in update.weights.values():
        if not 0 <= weight <= MAX_WEIGHT:  # NaN fails too
            raise ValueError(f"weight {weight} of {update.agent_id} is outside 0 to {MAX_WEIGHT:g}")


_FLOAT32 = np.dtype(np.float32)
#: Keeps weight × float32's largest number × any cohort inside float64.
MAX_WEIGHT = 1e18
