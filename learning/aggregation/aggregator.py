"""What every aggregator is: updates go in one by one, one mean delta comes out."""

from __future__ import annotations

from typing import Protocol

from learning.vector.parameters import F32


class Aggregator(Protocol):
    """One round's updates, folded in as they are accepted. Not thread-safe."""

    @property
    def weight(self) -> float:
        """Sum of the weights so far."""

    def add(self, delta: F32, weight: float) -> None:
        """Folds one update in; `delta` is not kept and may be reused.

        Args:
            delta: float32, shape (P,), finite: admission has seen to that.
            weight: the number of examples, so that every example counts alike (McMahan et al.
                2017, Algorithm 1), or 1 for every agent, so that no device with a lot of data
                decides alone. 0 to 1e18.

        Raises:
            ValueError: another shape or dtype, or a weight out of range.
        """

    def mean(self) -> F32:
        """The aggregate so far: float32, shape (P,), a new array.

        Raises:
            TrainingError: no update, or only updates of weight 0: the round cannot be committed.
        """
