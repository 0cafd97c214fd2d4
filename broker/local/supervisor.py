"""Runs a program and starts it again when it ends by itself, after a pause that grows."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from broker.local.end_process import end_process

log = logging.getLogger(__name__)

#: Pauses before the first restarts, doubled from one to the next, and their limit.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
#: After so long a run the next pause is the first one again.
_LONG_RUN_S = 60.0
_STOP_S = 30.0
_POLL_S = 0.1


class Supervisor:
    """Keeps one program running until it is told to stop.

    Args:
        name: name of the program in the log.
        command: program and arguments.
        prepare: called before each start.
        clock_s: monotonic time.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        prepare: Callable[[], None] = lambda: None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._command = list(command)
        self._prepare = prepare
        self._clock_s = clock_s
        self._pause_s = _FIRST_PAUSE_S

    def run(self, stop: threading.Event) -> None:
        """Runs the program until `stop` is set, then ends it with SIGTERM.

        A program that ends with an error before it ever ran for a moment is not started again: its
        configuration is wrong.

        Raises:
            subprocess.CalledProcessError: it ended so.
            OSError: it cannot be started.
        """
        is_first = True
        while not stop.is_set():
            began_s = self._clock_s()
            self._prepare()
            process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
            try:
                while process.poll() is None and not stop.wait(_POLL_S):
                    pass
            finally:
                code = end_process(process, _STOP_S)
            if stop.is_set():
                return
            ran_s = self._clock_s() - began_s
            if is_first and code > 0 and ran_s < _FIRST_PAUSE_S:
                raise subprocess.CalledProcessError(code, self._command)
            is_first = False
            stop.wait(self._next_pause_s(code, ran_s))

    def _next_pause_s(self, code: int, ran_s: float) -> float:
        if ran_s >= _LONG_RUN_S:
            self._pause_s = _FIRST_PAUSE_S
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        log.warning(
            "%s %s after %.0f s; started again in %g s",
            self._name,
            how,
            ran_s,
            pause_s,
            extra={"event": "restarted", "exit_code": code},
        )
        return pause_s
