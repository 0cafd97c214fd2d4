"""Share cap: no agent weighs more than its share in a weighted mean, however many rows it claims.

`num_examples` is what a device says of itself. From three agents on one may have half of the weight
at most, from five on a third, from eight on a quarter. At most three agents can be above such a
share, and they are the heaviest: a stream that keeps the three heaviest updates back until its end
needs no others again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from learning.vector.parameters import F64

T = TypeVar("T")

#: Agents that can be above the smallest share at once; they are kept back.
HELD = 3


def largest_share(count: int) -> float:
    """Returns the largest share of the weight that one of `count` agents may have."""
    if count < 3:
        return 1.0
    if count < 5:
        return 0.5
    return 1 / 3 if count < 8 else 0.25


def capped_weight(heaviest: Sequence[float], rest: float, count: int) -> float:
    """Returns the weight above which an agent's weight is cut, so that none exceeds its share.

    The cut weight itself is part of the total: with share s, c = s · (total after the cut).

    Args:
        heaviest: the heaviest weights, at most `HELD`; those beyond the share are among them.
        rest: sum of all other weights.
        count: number of agents.
    """
    share = largest_share(count)
    weights = sorted(heaviest, reverse=True)
    for cut in range(len(weights) + 1):
        # With the `cut` heaviest at c: c = share · (rest + the others + cut · c).
        others = rest + sum(weights[cut:])
        if cut and cut * share < 1:
            limit = share * others / (1 - cut * share)
            if cut == len(weights) or weights[cut] <= limit:
                return limit
        elif not cut and weights and weights[0] <= share * others:
            return weights[0]
    return max(weights, default=0.0)


class Weighed(NamedTuple, Generic[T]):
    """A value and its weight."""

    weight: float
    value: T


class ShareCap(Generic[T]):
    """A stream of weighed values whose heaviest come last, with their weights cut.

    Memory: three values.
    """

    def __init__(self) -> None:
        self._held: list[Weighed[T]] = []
        self._rest = 0.0
        self._count = 0

    def add(self, weight: float, value: T) -> Weighed[T] | None:
        """Takes a value; returns the one that may go on now, if any, at its full weight."""
        self._count += 1
        self._held.append(Weighed(weight, value))
        if len(self._held) <= HELD:
            return None
        # Of equal weights the earliest goes on: the order of arrival stays.
        weights = [each.weight for each in self._held]
        passed = self._held.pop(weights.index(min(weights)))
        self._rest += passed.weight
        return passed

    def add_many(
        self, weights: F64, value_of: Callable[[int], T]
    ) -> tuple[list[Weighed[T]], NDArray[np.bool_]]:
        """Takes the values of a cohort, as `add` one by one.

        Args:
            weights: of the n values, shape (n,).
            value_of: makes a value by its number; called for those that are held back.

        Returns:
            Values held back before that may go on now, and which of the n may, shape (n,).
        """
        before = len(self._held)
        held = [each.weight for each in self._held]
        everything = np.concatenate([np.array(held, np.float64), weights])
        # A stable order: of equal weights the latest are kept.
        order = np.argsort(everything, kind="stable")
        keep = np.sort(order[-HELD:])
        passes = np.ones(len(everything), bool)
        passes[keep] = False
        gone = [each for each, is_gone in zip(self._held, passes, strict=False) if is_gone]
        kept = [each for each, is_gone in zip(self._held, passes, strict=False) if not is_gone]
        new = [n - before for n in keep.tolist() if n >= before]
        self._held = [*kept, *(Weighed(float(weights[n]), value_of(n)) for n in new)]
        self._rest += float(everything[passes].sum())
        self._count += len(weights)
        return gone, passes[before:]

    def merge(self, other: ShareCap[T]) -> list[Weighed[T]]:
        """Takes what another stream held back; returns the values that may go on now."""
        self._rest += other._rest
        self._count += other._count - len(other._held)
        passed = (self.add(*each) for each in other._held)
        return [each for each in passed if each is not None]

    def finish(self) -> list[Weighed[T]]:
        """Returns the values held back, none above its share; the stream is empty after it."""
        limit = capped_weight([each.weight for each in self._held], self._rest, self._count)
        held = [Weighed(min(each.weight, limit), each.value) for each in self._held]
        self._held, self._rest, self._count = [], 0.0, 0
        return held
