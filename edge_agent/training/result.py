"""What a training gives."""

from __future__ import annotations

from dataclasses import dataclass

from learning.vector.metrics import Sums
from learning.vector.parameters import F32


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What local training produced.

    Attributes:
        delta: vector after - vector before; float32, of θ's length; with a personal part behind it
            until the device keeps that for itself.
        num_examples: rows learned from.
        sums: of loss and metrics over the last epoch, each batch measured before its step.
        steps: optimizer steps made.
        seconds: wall time.
    """

    delta: F32
    num_examples: int
    sums: Sums
    steps: int
    seconds: float
