"""Learning curves: best so far, and where they cross a target.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
AISTATS, arXiv 1602.05629, section 3: a curve is made monotone by "taking the best value of test-set
accuracy achieved over all prior rounds"; it crosses the target where "linear interpolation between
the discrete points forming the curve" does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """Where a learning curve reaches a target, between two measured rounds.

    Attributes:
        rounds: rounds until then.
        bytes_up: sent by agents until then.
        bytes_down: received by agents until then.
        seconds: until then.
    """

    rounds: float
    bytes_up: float
    bytes_down: float
    seconds: float

    @property
    def bytes_both(self) -> float:
        """Bytes up and down."""
        return self.bytes_up + self.bytes_down


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric over the rounds in which it was measured, and what had been spent by then.

    Attributes:
        metric: its name.
        falls: whether smaller values are better.
        rounds: numbers of the rounds, from 1, abandoned ones counted; shape (n,).
        values: of the metric; shape (n,).
        bytes_up, bytes_down, seconds: of all rounds up to this one; shape (n,).
    """

    metric: str
    falls: bool
    rounds: F64
    values: F64
    bytes_up: F64
    bytes_down: F64
    seconds: F64

    def __len__(self) -> int:
        return len(self.values)

    @property
    def bytes_both(self) -> F64:
        """Bytes up and down, of all rounds up to each."""
        return self.bytes_up + self.bytes_down

    def monotone(self) -> Curve:
        """Returns the curve of the best value so far; NaN never is the best."""
        best = np.fmin if self.falls else np.fmax
        return replace(self, values=best.accumulate(self.values) if len(self) else self.values)

    def crossing(self, target: float) -> Crossing | None:
        """Returns where the monotone curve reaches the target; None if it never does.

        The first measured round counts whole: nothing is known of the time before it.
        """
        values = self.monotone().values
        reached = values <= target if self.falls else values >= target
        if not reached.any():
            return None
        after = int(np.argmax(reached))
        share = 1.0
        if after and np.isfinite(values[after - 1]):
            share = (target - values[after - 1]) / (values[after] - values[after - 1])
        return Crossing(
            *(
                _between(spent, after, float(share))
                for spent in (self.rounds, self.bytes_up, self.bytes_down, self.seconds)
            )
        )


def _between(spent: F64, after: int, share: float) -> float:
    before = spent[after - 1] if after else 0.0
    return float(before + share * (spent[after] - before))
