"""When to try again: exponential back-off with full jitter."""

from __future__ import annotations

from random import Random

#: A connection that lived this long was a good one: the next failure starts the back-off afresh.
#: One that dies at once (two devices with one id) keeps climbing.
STABLE_S = 10.0


class FullJitter:
    """Waits drawn from uniform(0, min(cap, base * 2 ** attempt)).

    "Full jitter" of M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015:
    a thousand devices that lost the same broker at the same moment come back spread out, and do
    the least work of the variants compared there.

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
        """The longest that the next wait can be."""
        # 2 ** 1100 overflows a float; long before that the cap is reached.
        return min(self._cap_s, self._base_s * 2.0 ** min(self.attempt, 64))

    def next_s(self, *, at_cap: bool = False) -> float:
        """How long to wait before the next attempt.

        Args:
            at_cap: draw from the whole range up to the cap: trying soon is known to be useless.
        """
        wait_s = self._rng.uniform(0.0, self._cap_s if at_cap else self.ceiling_s)
        self.attempt += 1
        return wait_s

    def reset(self) -> None:
        """It worked: the next failure starts from the base again."""
        self.attempt = 0
