"""What a service tells systemd: ready, alive, stopping, and one line of status (sd_notify(3)).

Nothing is told where nobody asked: without NOTIFY_SOCKET in the environment every call returns at
once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

#: sd_watchdog_enabled(3) advises half of the time; a third leaves room for one slow event.
_PINGS_IN_TIME = 3


class Supervisor:
    """The service manager that started this process, if any.

    The watchdog is for the loop that calls `alive`: told by another thread it would say nothing
    about whether events are still dealt with.

    Args:
        environment: with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as systemd sets them.
        clock: seconds, monotonic.
    """

    def __init__(
        self, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._ping_s = _watchdog_s(environment) / _PINGS_IN_TIME
        self._next_ping_s = 0.0

    @classmethod
    def of_this_process(cls) -> Supervisor:
        """As the environment says."""
        return cls(os.environ)

    def pause_s(self, longest_s: float) -> float:
        """How long the loop may wait before it has to say again that it is alive."""
        return min(longest_s, self._ping_s) if self._ping_s else longest_s

    def ready(self) -> None:
        """The service has started. It need not be connected: a broker may come later."""
        self._tell("READY=1")

    def alive(self) -> None:
        """The loop goes round; told as often as the watchdog needs, however often it is called."""
        now_s = self._clock()
        if self._ping_s and now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._ping_s
            self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell("STATUS=" + " ".join(text.split()))

    def stopping(self) -> None:
        """The service ends by itself or because it was told to."""
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                # A manager that reads nothing must not hang the loop that it watches.
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("systemd not told %s: %s", message, error)


def _address(text: str) -> str:
    """A path, or an abstract name (unix(7)), which systemd writes with "@"."""
    return "\0" + text[1:] if text.startswith("@") else text


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Seconds within which `alive` must be told; 0: no watchdog, or it is for another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0
