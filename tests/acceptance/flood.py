"""A client that publishes junk as quickly as the broker takes it."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator

from broker.local.broker import HOST

#: Begins like a status, ends like nothing.
JUNK = b'{"state": "online", "agent_instance": 7, "phases": [[[[[[[[[[[[' + b"x" * 60
#: CONNECT of an MQTT 3.1.1 client "intruder", clean, keep-alive 60 s.
_CONNECT = b"\x10\x14\x00\x04MQTT\x04\x02\x00\x3c\x00\x08intruder"
_PUBACK_BYTES = 4
_BATCH_BYTES = 50_000


def agent_topics(federation: str, agent_id: str, count: int) -> Iterator[str]:
    """Topics that agents write to; `{}` in the id becomes a number that is always another."""
    for number in range(count):
        tail = ("status", f"updates/{number % 50}/0", f"reports/{number % 50}")[number % 3]
        yield f"fedge/v1/{federation}/agents/{agent_id.format(number)}/{tail}"


def flood(port: int, topics: Iterable[str], qos: int = 1, payload: bytes = JUNK) -> int:
    """Publishes on each topic; returns how many messages the broker has taken.

    With QoS 0 it returns when they are in the broker's hands, or on the way there.
    """
    sent = acknowledged = 0
    with socket.create_connection((HOST, port), 30) as sock:
        sock.sendall(_CONNECT)
        assert sock.recv(4)[:1] == b"\x20"
        batch = bytearray()
        for topic in topics:
            batch += _publish(topic.encode(), payload, qos, sent)
            sent += 1
            if len(batch) < _BATCH_BYTES:
                continue
            sock.sendall(batch)
            batch.clear()
            while select.select([sock], [], [], 0)[0]:
                acknowledged += len(sock.recv(1 << 16))
        sock.sendall(batch)
        while acknowledged < _PUBACK_BYTES * sent * qos:
            acknowledged += len(sock.recv(1 << 16))
    return sent


def _publish(topic: bytes, payload: bytes, qos: int, number: int) -> bytes:
    packet_id = (number % 65_000 + 1).to_bytes(2, "big") if qos else b""
    rest = len(topic).to_bytes(2, "big") + topic + packet_id + payload
    assert 128 <= len(rest) < 16_384, "two bytes of length"
    return bytes((0x30 | qos << 1, len(rest) & 127 | 128, len(rest) >> 7)) + rest
