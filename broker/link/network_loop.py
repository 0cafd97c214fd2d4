"""The network thread: one asyncio loop that drives every connection of this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

log = logging.getLogger(__name__)

#: Threads that may sit in DNS, TCP connect or the TLS handshake at the same time; started when
#: needed. An unreachable broker occupies one for `connect_timeout_s` and delays nobody else
#: until all are taken.
_CONNECTORS = 4
_JOIN_S = 5.0


class HasFileno(Protocol):
    """A socket, or what lies on one."""

    def fileno(self) -> int:
        """Its file descriptor."""


class NetworkLoop:
    """An asyncio loop in one daemon thread; hosts as many links as file descriptors allow.

    epoll instead of paho's own `select`, which stops silently at 1,024 descriptors, and one
    thread instead of one a client.

    Attributes:
        errors: exceptions that reached the loop; each is logged and ends nothing.
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
        """Stops the thread. Links that still use it are dead: close them before."""
        self._connectors.shutdown(wait=False, cancel_futures=True)
        self.call(self._loop.stop)
        self._thread.join(_JOIN_S)

    def __enter__(self) -> NetworkLoop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Has the network thread call `function` soon; False when the loop is closed.

        The only method to be called from other threads (with `close`).
        """
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls `function` once the callback that is running has returned."""
        self._loop.call_soon(function, *arguments)

    def later(
        self, delay_s: float, function: Callable[..., object], *arguments: Any
    ) -> asyncio.TimerHandle:
        """Calls `function` after `delay_s`, unless the handle is cancelled."""
        return self._loop.call_later(delay_s, function, *arguments)

    def now_s(self) -> float:
        """The loop's clock (monotonic)."""
        return self._loop.time()

    def in_background(
        self, job: Callable[[], object], done: Callable[[BaseException | None], None]
    ) -> None:
        """Runs a job that may block in a connector thread, then `done(error)` on this one."""

        def run() -> None:
            error: BaseException | None = None
            try:
                job()
            except Exception as raised:  # noqa: BLE001 - it is handed over, not swallowed
                error = raised
            self.call(done, error)

        self._connectors.submit(run)

    def add_reader(self, sock: HasFileno, callback: Callable[[], None]) -> None:
        """Calls back while `sock` has something to read."""
        self._loop.add_reader(sock, callback)

    def add_writer(self, sock: HasFileno, callback: Callable[[], None]) -> None:
        """Calls back while `sock` takes bytes."""
        self._loop.add_writer(sock, callback)

    def remove_reader(self, sock: HasFileno) -> None:
        """Stops that."""
        self._loop.remove_reader(sock)

    def remove_writer(self, sock: HasFileno) -> None:
        """Stops that."""
        self._loop.remove_writer(sock)

    def count_error(self, what: str) -> None:
        """Logs the exception being handled and counts it."""
        self.errors += 1
        log.exception("%s; going on", what, extra={"event": "network_error"})

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors += 1
        log.error(
            "%s; going on",
            context.get("message"),
            exc_info=context.get("exception"),
            extra={"event": "network_error"},
        )
