"""A relay on loopback that counts the bytes of each connection, both ways, over time."""

from __future__ import annotations

import socket
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_PIECE = 1 << 16
#: Of the first bytes a client sends, so much is kept: it holds the id in an MQTT CONNECT.
_HEAD = 256


@dataclass
class Connection:
    """One client's connection.

    Attributes:
        head: the first bytes that the client sent.
        up, down: moments, and bytes since the connection began, from and to the client.
    """

    head: bytes = b""
    up: list[tuple[float, int]] = field(default_factory=list)
    down: list[tuple[float, int]] = field(default_factory=list)


class Relay:
    """Passes bytes on to a server while the `with` block lasts.

    Args:
        port: of the server on this machine; it need not be there yet.
        on_first: called with a connection's first bytes before they are passed on.

    Attributes:
        port: that clients connect to.
        connections: all that there were.
    """

    def __init__(self, port: int, on_first: Callable[[bytes], None]) -> None:
        self._target = port
        self._on_first = on_first
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[Connection] = []
        self._open: list[socket.socket] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection((HOST, self._target), 5)
            except OSError:  # not there yet: the client tries again
                client.close()
                continue
            server.settimeout(None)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += [client, server]
            connection = Connection()
            self.connections.append(connection)
            ways = ((client, server, connection.up), (server, client, connection.down))
            for source, sink, counts in ways:
                arguments = (source, sink, counts, connection)
                threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(
        self,
        source: socket.socket,
        sink: socket.socket,
        counts: list[tuple[float, int]],
        connection: Connection,
    ) -> None:
        total = 0
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if counts is connection.up and not connection.head:
                    connection.head = piece[:_HEAD]
                    self._on_first(connection.head)
                total += len(piece)
                counts.append((time.monotonic(), total))
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def between(self, begin: float, end: float, of: bytes = b"") -> tuple[int, int]:
        """Bytes up and down between two moments, of clients with `of` in their first bytes."""
        chosen = [connection for connection in list(self.connections) if of in connection.head]
        up = sum(_until(c.up, end) - _until(c.up, begin) for c in chosen)
        return up, sum(_until(c.down, end) - _until(c.down, begin) for c in chosen)


def _until(counts: list[tuple[float, int]], moment: float) -> int:
    index = bisect_right(counts, moment, key=lambda point: point[0])
    return counts[index - 1][1] if index else 0
