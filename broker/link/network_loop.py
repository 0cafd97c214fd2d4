"""Network thread: one asyncio loop that serves every connection of this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

log = logging.getLogger(__name__)

#: Threads for DNS, TCP connect and TLS handshakes, started when needed. An unreachable broker
#: occupies one of them for `connect_timeout_s`; others wait only when all are occupied.
_CONNECTORS = 4
_JOIN_S = 5.0


class HasFileno(Protocol):
    """Socket, or an object with the file descriptor of one."""

    def fileno(self) -> int:
        """Returns the file descriptor."""


class NetworkLoop:
    """Asyncio loop in one daemon thread; serves as many links as file descriptors allow.

    It uses epoll instead of paho's `select`, which stops silently at 1,024 descriptors, and one
    thread instead of one per client.

    Attributes:
        errors: number of exceptions that reached the loop; each is logged, and the loop continues.
    """

    def __init__(self, name: str = "fedge-network") -> None:
        self.errors = 0
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_error)
        self._connectors = ThreadPoolExecutor(_CONNECTORS, thread_name_prefix=f"{name}-connect")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def close(self) -> None:
        """Stops the thread. Links that still use it stop working: close them before."""
        self._connectors.shutdown(wait=False, cancel_futures=True)
        self.call(self._loop.stop)
        self._thread.join(_JOIN_S)

    def __enter__(self) -> NetworkLoop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Calls `function` soon on the network thread; returns False when the loop is closed.

        Besides `close`, this is the only method for other threads.
        """
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls `function` after the running callback has returned."""
        self._loop.call_soon(function, *arguments)

    def later(
        self, delay_s: float, function: Callable[..., object], *arguments: Any
    ) -> asyncio.TimerHandle:
        """Calls `function` after `delay_s`, unless the handle is cancelled."""
        return self._loop.call_later(delay_s, function, *arguments)

    def now_s(self) -> float:
        """Returns the time of the loop's clock (monotonic)."""
        return self._loop.time()

    def in_background(
        self, job: Callable[[], object], done: Callable[[BaseException | None], None]
    ) -> None:
        """Runs a blocking job in a connector thread, then `done(error)` on the network thread."""

        def run() -> None:
            error: BaseException | None = None
            try:
                job()
            except Exception as raised:  # noqa: BLE001 - passed to `done`, not swallowed
                error = raised
            self.call(done, error)

        self._connectors.submit(run)

    def add_reader(self, sock: HasFileno, callback: Callable[[], None]) -> None:
        """Calls `callback` while `sock` is readable."""
        self._loop.add_reader(sock, callback)

    def add_writer(self, sock: HasFileno, callback: Callable[[], None]) -> None:
        """Calls `callback` while `sock` is writable."""
        self._loop.add_writer(sock, callback)

    def remove_reader(self, sock: HasFileno) -> None:
        """Ends `add_reader`."""
        self._loop.remove_reader(sock)

    def remove_writer(self, sock: HasFileno) -> None:
        """Ends `add_writer`."""
        self._loop.remove_writer(sock)

    def count_error(self, what: str) -> None:
        """Logs the exception being handled and counts it."""
        self.errors += 1
        log.exception("%s; the network thread continues", what, extra={"event": "network_error"})

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors += 1
        log.error(
            "%s; the network thread continues",
            context.get("message"),
            exc_info=context.get("exception"),
            extra={"event": "network_error"},
        )
