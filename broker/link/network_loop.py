"""Network thread: one loop over epoll that serves every connection of this process.

Not asyncio's: nothing here awaits, and importing asyncio takes 2 MB of an agent's memory.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from fedge.limits import is_power_of_two

log = logging.getLogger(__name__)

#: Threads for DNS, TCP connect and TLS handshakes, started when needed. An unreachable broker
#: occupies one of them for `connect_timeout_s`; others wait only when all are occupied.
_CONNECTORS = 4
_JOIN_S = 5.0


class HasFileno(Protocol):
    """Socket, or an object with the file descriptor of one."""

    def fileno(self) -> int:
        """Returns the file descriptor."""


class Timer:
    """Call that is due at a time, unless it is cancelled."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function: Callable[[], object] | None = function

    def cancel(self) -> None:
        """Drops the call."""
        self._function = None

    def run(self) -> None:
        """Makes the call."""
        if self._function is not None:
            self._function()


class _Watch:
    """Callbacks of one file descriptor; None: not watched for that."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[[], None]] = {}

    @property
    def events(self) -> int:
        """Events of `selectors` that somebody waits for."""
        return sum(self.callbacks)


class NetworkLoop:
    """Event loop in one daemon thread; serves as many links as file descriptors allow.

    It uses epoll instead of paho's `select`, which stops silently at 1,024 descriptors, and one
    thread instead of one per client.

    Attributes:
        errors: number of exceptions that reached the loop; the 1st, 2nd, 4th, 8th ... are logged,
            and the loop continues.
    """

    def __init__(self, name: str = "fedge-network") -> None:
        self.errors = 0
        self._selector = selectors.DefaultSelector()
        self._ready: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()  # timers of one moment run in the order they were made
        self._lock = threading.Lock()  # of the two below, which other threads use too
        self._waking = False
        self._closed = False
        self._stopping = False
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self.add_reader(self._woken, self._wake_up)
        self._connectors = ThreadPoolExecutor(_CONNECTORS, thread_name_prefix=f"{name}-connect")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            with self._lock:
                self._closed = True
                self._waker.close()
            self._woken.close()
            self._selector.close()

    def _turn(self) -> None:
        """Waits for the next event or timer, and makes all calls that are due by then."""
        for key, mask in self._selector.select(self._wait_s()):
            for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                # Looked up now: an earlier callback may have ended the watch.
                if mask & event and (callback := key.data.callbacks.get(event)):
                    self._guarded(callback)
        now_s = self.now_s()
        while self._timers and self._timers[0][0] <= now_s:
            self._guarded(heapq.heappop(self._timers)[2].run)
        for _ in range(len(self._ready)):  # what these add waits for its turn, behind the sockets
            self._guarded(self._ready.popleft())

    def _wait_s(self) -> float | None:
        if self._ready:
            return 0.0
        return max(0.0, self._timers[0][0] - self.now_s()) if self._timers else None

    def _guarded(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception:  # noqa: BLE001 - one callback must not end the loop
            self.count_error("error in a callback")

    def close(self) -> None:
        """Stops the thread. Links that still use it stop working: close them before."""
        self._connectors.shutdown(wait=False, cancel_futures=True)
        self.call(self._stop)
        self._thread.join(_JOIN_S)

    def _stop(self) -> None:
        self._stopping = True

    def __enter__(self) -> NetworkLoop:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Calls `function` soon on the network thread; returns False when the loop is closed.

        Besides `close`, this is the only method for other threads.
        """
        with self._lock:
            if self._closed:
                return False
            self._ready.append(lambda: function(*arguments))
            if not self._waking:
                self._waking = True
                self._waker.send(b"\0")
        return True

    def _wake_up(self) -> None:
        with self._lock:
            self._waking = False
            self._woken.recv(64)

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls `function` after the running callback has returned."""
        self._ready.append(lambda: function(*arguments))

    def later(self, delay_s: float, function: Callable[..., object], *arguments: Any) -> Timer:
        """Calls `function` after `delay_s`, unless the timer is cancelled."""
        timer = Timer(lambda: function(*arguments))
        heapq.heappush(self._timers, (self.now_s() + delay_s, next(self._order), timer))
        return timer

    def now_s(self) -> float:
        """Returns the time of the loop's clock (monotonic)."""
        return time.monotonic()

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
        self._watch(sock, selectors.EVENT_READ, callback)

    def add_writer(self, sock: HasFileno, callback: Callable[[], None]) -> None:
        """Calls `callback` while `sock` is writable."""
        self._watch(sock, selectors.EVENT_WRITE, callback)

    def remove_reader(self, sock: HasFileno) -> None:
        """Ends `add_reader`."""
        self._unwatch(sock, selectors.EVENT_READ)

    def remove_writer(self, sock: HasFileno) -> None:
        """Ends `add_writer`."""
        self._unwatch(sock, selectors.EVENT_WRITE)

    def _watch(self, sock: HasFileno, event: int, callback: Callable[[], None]) -> None:
        try:
            watch: _Watch = self._selector.get_key(sock).data
        except KeyError:
            watch = _Watch()
            watch.callbacks[event] = callback
            self._selector.register(sock, event, watch)
        else:
            watch.callbacks[event] = callback
            self._selector.modify(sock, watch.events, watch)

    def _unwatch(self, sock: HasFileno, event: int) -> None:
        with suppress(KeyError):  # watched no more
            watch: _Watch = self._selector.get_key(sock).data
            watch.callbacks.pop(event, None)
            if watch.callbacks:
                self._selector.modify(sock, watch.events, watch)
            else:
                self._selector.unregister(sock)

    def count_error(self, what: str) -> None:
        """Counts the exception being handled and perhaps logs it."""
        self.errors += 1
        if is_power_of_two(self.errors):
            log.exception(
                "%s; the network thread continues (%d errors)",
                what,
                self.errors,
                extra={"event": "network_error"},
            )
