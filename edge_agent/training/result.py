"""Result of a local training."""

from __future__ import annotations

from dataclasses import dataclass

from learning.vector.metrics import Sums
from learning.vector.parameters import F32


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """Result of a local training.

    Attributes:
        start: float32, [P + Q]: the vector that training began from, personal layers last.
        theta: float32, [P + Q]: where it ended.
        num_examples: rows learned from.
        sums: of loss and metrics over the last epoch, each batch measured before its step.
        steps: optimizer steps made.
        seconds: wall time.
    """

    start: F32
    theta: F32
    num_examples: int
    sums: Sums
    steps: int
    seconds: float

    @property
    def delta(self) -> F32:
        """The vector after training minus the vector before."""
        return self.theta - self.start
