"""Throttle: keeps a training within its share of the processor, and pauses or cancels it."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Sleeps shorter than this are saved up: a step of a small model takes 50 µs, a sleep some more.
_LEAST_SLEEP_S = 0.01
#: A sleep or a pause checks so often whether the training was cancelled.
_LONGEST_SLEEP_S = 0.2


class Throttle:
    """Sleeps between steps; a training asks it before every step.

    The share of the time is kept by sleeping between steps, which works without root and on every
    kernel. (A control group would be exact, but writing one takes root or delegation: systemd's
    CPUQuota of the agent's unit is that.)

    Args:
        share: of the time that the training may compute, above 0 to 1.
        cancelled: whether nobody waits for the result any more.
        paused: whether the training must wait.
        clock: steady, in seconds.
        sleep: for so many seconds.
    """

    def __init__(
        self,
        share: float,
        cancelled: Callable[[], bool],
        paused: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._sleep_per_s = 1.0 / share - 1.0
        self._cancelled = cancelled
        self._paused = paused
        self._clock = clock
        self._sleep = sleep
        self._owed_s = 0.0
        self._since_s = clock()

    def wait_and_check_cancelled(self) -> bool:
        """Waits until the next step may be made; returns whether to stop instead."""
        if self._sleep_per_s:
            self._owed_s += (self._clock() - self._since_s) * self._sleep_per_s
            if self._owed_s >= _LEAST_SLEEP_S:
                self._sleep_share()
        while self._paused() and not self._cancelled():
            self._sleep(_LONGEST_SLEEP_S)
        self._since_s = self._clock()
        return self._cancelled()

    def _sleep_share(self) -> None:
        # Not down to the last bit: a clock may not show so short a sleep.
        while self._owed_s > _LEAST_SLEEP_S / 100 and not self._cancelled():
            began_s = self._clock()
            self._sleep(min(self._owed_s, _LONGEST_SLEEP_S))
            # What the sleep really took: it is always a little longer.
            self._owed_s -= self._clock() - began_s
