"""Notifications to systemd: ready, watchdog, stopping, and a line of status (sd_notify(3)).

Without NOTIFY_SOCKET in the environment every call returns at once.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

#: Pings per watchdog time: sd_watchdog_enabled(3) advises two; three leave room for a slow event.
_PINGS_PER_TIMEOUT = 3


class Supervisor:
    """Connection to the service manager that started this process, if any.

    The loop that handles events must call `alive` itself: pings from another thread would not prove
    that events are still handled.

    Args:
        environment: may contain NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as set by systemd.
        clock: seconds, monotonic.
    """

    def __init__(
        self, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._ping_s = _watchdog_s(environment) / _PINGS_PER_TIMEOUT
        self._next_ping_s = 0.0

    @classmethod
    def of_this_process(cls) -> Supervisor:
        """Returns the supervisor that this process's environment names."""
        return cls(os.environ)

    def pause_s(self, longest_s: float) -> float:
        """Returns how long the loop may wait before the next ping is due."""
        return min(longest_s, self._ping_s) if self._ping_s else longest_s

    def ready(self) -> None:
        """Reports that the service has started, whether connected or not."""
        self._tell("READY=1")

    def alive(self) -> None:
        """Pings the watchdog if a ping is due; call it in every turn of the loop."""
        now_s = self._clock()
        if self._ping_s and now_s >= self._next_ping_s:
            self._next_ping_s = now_s + self._ping_s
            self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Sets the line of status in `systemctl status`."""
        self._tell("STATUS=" + " ".join(text.split()))

    def stopping(self) -> None:
        """Reports that the service is stopping."""
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                # A manager that does not read must not block the loop.
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.debug("systemd notification %s failed: %s", message, error)


def _address(text: str) -> str:
    """Returns the address of a socket: a path, or an abstract name (unix(7)) written with "@"."""
    return "\0" + text[1:] if text.startswith("@") else text


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Returns the watchdog's timeout; 0: no watchdog, or it is for another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() else 0.0
