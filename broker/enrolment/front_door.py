"""Front door of the enrolment broker: limits connections, and passes their bytes on unread.

The enrolment port is open to strangers, and Mosquitto waits for each connection's handshake for a
minute and a half: without a limit for each address, one client that opens two hundred connections
and says nothing keeps every device out. Mosquitto knows no such limit, so it listens on the
loopback interface only, behind this door.

A connection that is not let in gets a TLS alert, by which a device knows that the service is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from broker.enrolment.doorkeeper import Doorkeeper, DoorLimits
from fedge.errors import ConfigError

log = logging.getLogger(__name__)

#: TLS alert "user_canceled", fatal (RFC 8446 §6): "canceling the handshake for some reason
#: unrelated to a protocol failure".
BUSY_ALERT = b"\x15\x03\x03\x00\x02\x02\x5a"
_BLOCK = 16 << 10
#: Without reading what a refused client has sent, closing would reset the connection before the
#: client has read the alert. So many refused clients are waited for; others are reset.
_LINGER_S, _MAX_LINGERING = 2.0, 100
_START_S = 10.0
#: Directions of bytes, in turn, of a handshake: hello there and back, and CONNECT and its answer.
_HANDSHAKE_TURNS = 4


@dataclass(eq=False)
class _Passage:
    """One connection on its way through.

    Attributes:
        address: of the client.
        close: ends it.
        came_s: when it was accepted.
        heard_s: when bytes last passed.
        turns: how often the direction of the bytes has changed.
    """

    address: str
    close: Callable[[], None]
    came_s: float
    heard_s: float
    turns: int = 0
    is_from_client: bool | None = None

    def passed(self, now_s: float, *, is_from_client: bool) -> None:
        """Notes that bytes passed."""
        self.heard_s = now_s
        if is_from_client is not self.is_from_client:
            self.is_from_client = is_from_client
            self.turns += 1

    def overdue(self, now_s: float, limits: DoorLimits) -> str:
        """Returns why the connection has to end; empty: it has not."""
        if self.turns < _HANDSHAKE_TURNS and now_s >= self.came_s + limits.handshake_s:
            return f"no handshake within {limits.handshake_s:g} s"
        if now_s >= self.heard_s + limits.idle_s:
            return f"nothing said for {limits.idle_s:g} s"
        if now_s >= self.came_s + limits.lifetime_s:
            return f"open for {limits.lifetime_s:g} s"
        return ""


class FrontDoor:
    """Serves a port on a thread of its own while the `with` block lasts.

    Args:
        bind: address to listen on; empty: all.
        port: to listen on; 0: any.
        target: host and port of the broker.
        limits: of connections.

    Raises:
        ConfigError: on entering: the port cannot be listened on.
    """

    def __init__(
        self, bind: str, port: int, target: tuple[str, int], limits: DoorLimits | None = None
    ) -> None:
        self.port = port
        self._bind = bind
        self._target = target
        self._limits = limits or DoorLimits()
        self._keeper = Doorkeeper(self._limits)
        self._passages: dict[int, _Passage] = {}
        self._number = 0
        self._lingering = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: OSError | None = None
        self._is_ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fedge-front-door", daemon=True)

    def __enter__(self) -> FrontDoor:
        self._thread.start()
        self._is_ready.wait(_START_S)
        if self._error is not None:
            self._thread.join()
            text = self._error.strerror or str(self._error)
            raise ConfigError(f"enrolment cannot listen on port {self.port}: {text}")
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_START_S)

    # -- its thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            server = self._loop.run_until_complete(
                asyncio.start_server(self._enter, self._bind or None, self.port, backlog=256)
            )
        except OSError as error:
            self._error = error
            self._is_ready.set()
            self._loop.close()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._spawn(self._sweep())
        self._is_ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self._loop.close()

    def _spawn(self, job: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        """Closes what is overdue."""
        while True:
            await asyncio.sleep(min(1.0, self._limits.handshake_s / 4))
            now_s = time.monotonic()
            for passage in list(self._passages.values()):
                if why := passage.overdue(now_s, self._limits):
                    self._tell("closed", passage.address, why)
                    passage.close()

    def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        address = str(peer[0]) if peer else "?"
        self._number += 1
        number, now_s = self._number, time.monotonic()
        why, victim = self._keeper.enter(address, number, now_s)
        if why:
            self._tell("refused", address, why)
            self._turn_away(reader, writer)
            return
        if victim is not None and (oldest := self._passages.get(victim)) is not None:
            self._tell("closed", oldest.address, "all places are taken, most by this address")
            self._keeper.left(oldest.address, victim)
            oldest.close()
        passage = _Passage(address, writer.transport.abort, now_s, now_s)
        self._passages[number] = passage
        self._spawn(self._pass_on(number, passage, reader, writer))

    def _tell(self, what: str, address: str, why: str) -> None:
        facts = {"event": "enrolment_connection", "sender": address, "reason": why}
        log.warning("connection from %s %s: %s", address, what, why, extra=facts)

    def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            writer.write(BUSY_ALERT)
            writer.write_eof()
        if self._lingering < _MAX_LINGERING:
            self._spawn(self._linger(reader, writer))
        else:
            writer.close()

    async def _linger(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lingering += 1
        try:
            async with asyncio.timeout(_LINGER_S):
                while await reader.read(_BLOCK):
                    pass
        except (OSError, TimeoutError):
            pass
        finally:
            self._lingering -= 1
            writer.transport.abort()

    async def _pass_on(
        self,
        number: int,
        passage: _Passage,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        inner: asyncio.StreamWriter | None = None
        try:
            inner_reader, inner = await asyncio.open_connection(*self._target)
            await asyncio.gather(
                _pump(reader, inner, passage, is_from_client=True),
                _pump(inner_reader, writer, passage, is_from_client=False),
            )
        except OSError as error:
            log.error("enrolment broker cannot be reached: %s", error.strerror or error)
        finally:
            self._passages.pop(number, None)
            self._keeper.left(passage.address, number)
            writer.transport.abort()
            if inner is not None:
                inner.transport.abort()


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    passage: _Passage,
    *,
    is_from_client: bool,
) -> None:
    """Passes bytes on until one side ends, then ends the other."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_BLOCK):
            passage.passed(time.monotonic(), is_from_client=is_from_client)
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()
