"""Exponential back-off with full jitter."""

from __future__ import annotations

from random import Random

#: A connection that lasted this long resets the back-off. One that ends at once (two devices with
#: one id) does not, so the waits grow.
STABLE_S = 10.0


class FullJitter:
    """Draws waits from uniform(0, min(cap, base * 2 ** attempt)).

    "Full jitter" of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015:
    a thousand devices that lose a broker at the same moment reconnect spread out over time, with
    the fewest attempts of the variants compared there.

    Attributes:
        attempt: failures since the last `reset`.
    """

    def __init__(self, base_s: float, cap_s: float, rng: Random) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng
        self.attempt = 0

    @property
    def ceiling_s(self) -> float:
        """Upper limit of the next wait."""
        # 2 ** 1100 overflows a float; the cap is reached long before.
        return min(self._cap_s, self._base_s * 2.0 ** min(self.attempt, 64))

    def next_s(self, *, at_cap: bool = False) -> float:
        """Returns the wait before the next attempt.

        Args:
            at_cap: draw from the whole range up to the cap, since an early retry would fail.
        """
        wait_s = self._rng.uniform(0.0, self._cap_s if at_cap else self.ceiling_s)
        self.attempt += 1
        return wait_s

    def reset(self) -> None:
        """Starts from the base again, after a success."""
        self.attempt = 0
