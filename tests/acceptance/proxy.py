"""A network that fails on purpose: a TCP proxy on loopback, between a client and a broker."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

from broker.local.broker import HOST

_BLOCK = 1 << 16
_PUBLISH, _PUBACK = 3, 4
#: Connections at a time; a test has a few.
_MOST_CONNECTIONS = 64


class Proxy:
    """Relays to a broker on this machine while the `with` block lasts.

    Args:
        target: port of the broker.
        loses: asked for the topic of every PUBLISH from the broker; true ones never arrive, and
            the broker is told that they did: so a broker that drops messages looks to a client.

    Attributes:
        port: where clients connect, on 127.0.0.1.
        to_client: bytes relayed from the broker.
        lost: messages that were lost.
    """

    def __init__(self, target: int, loses: Callable[[str], bool] | None = None) -> None:
        self._target = target
        self._loses = loses
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self.to_client = 0
        self.lost = 0
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        self._closed = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._spawn(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._flows.set()
        self._hang_up()
        for thread in self._threads:
            thread.join(5)

    def swallow(self) -> None:
        """From now on nothing gets through, and nobody is told: a router that lost power."""
        self._flows.clear()

    def cut(self) -> None:
        """From now on connections end, and new ones at once."""
        self._refuses = True
        self._hang_up()

    def heal(self) -> None:
        """From now on all is well."""
        self._refuses = False
        self._flows.set()

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                full = len(self._sockets) >= 2 * _MOST_CONNECTIONS
            if self._refuses or full:
                client.close()
                continue
            try:
                broker = socket.create_connection((HOST, self._target), 5)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, broker}
            self._spawn(self._relay, client, broker, False)
            self._spawn(self._relay, broker, client, True)

    def _relay(self, source: socket.socket, sink: socket.socket, to_client: bool) -> None:
        packets = _Packets()
        # ValueError: the relay of the other direction has closed both ends.
        with contextlib.suppress(OSError, ValueError):
            while self._waits_for(source):
                data = source.recv(_BLOCK)
                if not data:
                    break
                if to_client and self._loses is not None:
                    data = self._without_losses(packets.add(data), source)
                if to_client:
                    self.to_client += len(data)
                sink.sendall(data)
        self._end(source, sink)

    def _waits_for(self, source: socket.socket) -> bool:
        """True once there is something to relay, and it may be relayed."""
        while not self._closed:
            readable, _, _ = select.select([source], [], [], 0.2)
            if readable and self._flows.wait(0.2):
                return True
        return False

    def _without_losses(self, packets: list[bytes], broker: socket.socket) -> bytes:
        kept = []
        for packet in packets:
            if packet[0] >> 4 == _PUBLISH:
                topic, packet_id = _publish(packet)
                assert self._loses is not None
                if self._loses(topic):
                    self.lost += 1
                    broker.sendall(bytes([_PUBACK << 4, 2]) + packet_id)
                    continue
            kept.append(packet)
        return b"".join(kept)

    def _end(self, *ends: socket.socket) -> None:
        with self._lock:
            self._sockets -= set(ends)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _hang_up(self) -> None:
        with self._lock:
            ends = list(self._sockets)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _Packets:
    """Cuts a stream into MQTT packets (MQTT 5 §2.1)."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """The packets that are whole now."""
        self._rest += data
        found = []
        while (end := _packet_end(self._rest)) is not None and end <= len(self._rest):
            found.append(self._rest[:end])
            self._rest = self._rest[end:]
        return found


def _packet_end(data: bytes) -> int | None:
    """Where the first packet ends; None when its length is not there yet."""
    length = 0
    for position, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << (7 * position)
        if not byte & 0x80:
            return 2 + position + length
    return None


def _publish(packet: bytes) -> tuple[str, bytes]:
    """Topic and packet identifier of a PUBLISH of QoS 1."""
    start = next(position for position, byte in enumerate(packet[1:5], 2) if not byte & 0x80)
    length = int.from_bytes(packet[start : start + 2], "big")
    end = start + 2 + length
    return packet[start + 2 : end].decode(), packet[end : end + 2]
