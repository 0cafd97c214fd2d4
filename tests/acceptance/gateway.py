"""A hostile gateway: the coordinator's broker on one side, the agents' on the other, and a man in
the middle who reads, keeps, changes and invents messages as he likes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from zlib import crc32

import msgspec
import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.local.broker import HOST
from broker.protocol import blobs, messages, signed_messages
from broker.protocol.messages import RoundPlan
from broker.protocol.topics import ChunkTopic, RoundTopic, Topics
from broker.security.signing import SigningKeys

TOPICS = Topics("f")
_DOWN = ("coordinator/status", "program", "round", "blobs/+/+", "agents/+/inbox")
#: A round that the coordinator never announced.
FALSE_ROUND = 999

Forge = Callable[[str, bytes], Iterable[bytes]]


class Gateway:
    """Carries messages between two brokers.

    Args:
        north: port of the coordinator's broker.
        south: port of the agents' broker.
        forge: what to send the agents before a message of the coordinator's.

    Attributes:
        heard: what the coordinator said, in order, by topic.
        withholds: carries nothing more to the agents.
    """

    def __init__(self, north: int, south: int, forge: Forge) -> None:
        self.heard: dict[str, list[bytes]] = {}
        self.withholds = False
        self._forge = forge
        self._south = _client(south, "south", TOPICS.from_agents, self._up)
        self._north = _client(north, "north", [TOPICS.root + tail for tail in _DOWN], self._down)

    def _down(self, topic: str, payload: bytes) -> None:
        if payload:
            for false in list(self._forge(topic, payload)):
                self.say(topic, false)
        self.heard.setdefault(topic, []).append(payload)
        if not self.withholds:
            self.say(topic, payload)

    def _up(self, topic: str, payload: bytes) -> None:
        self._north.publish(topic, payload, 1, topic.endswith("/status"))

    def say(self, topic: str, payload: bytes) -> None:
        """Tells the agents something."""
        self._south.publish(topic, payload, 1, not topic.endswith("/inbox"))

    def close(self) -> None:
        """Ends both connections."""
        for client in (self._north, self._south):
            client.disconnect()
            client.loop_stop()


def _client(
    port: int, name: str, filters: Iterable[str], take: Callable[[str, bytes], None]
) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
    ready = threading.Event()
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _c, _u, message: take(message.topic, bytes(message.payload))
    client.connect(HOST, port)
    client.subscribe([(topic, 1) for topic in filters])
    client.loop_start()
    assert ready.wait(10)
    return client


@contextmanager
def between(north: int, south: int, forge: Forge) -> Iterator[Gateway]:
    """A gateway that works while the block lasts."""
    gateway = Gateway(north, south, forge)
    try:
        yield gateway
    finally:
        gateway.close()


class Forger:
    """Everything that someone without the coordinator's key can think of.

    Args:
        size: P of the model.
    """

    def __init__(self, size: int) -> None:
        self._keys = SigningKeys.generate()
        theta = np.full(size, 1e6, "<f4").tobytes()
        self.weights, self.chunks = blobs.split(theta)
        self._first: dict[str, bytes] = {}
        self._last: dict[str, bytes] = {}

    def __call__(self, topic: str, payload: bytes) -> Iterator[bytes]:
        """False messages for the agents, instead of a genuine one."""
        kind = TOPICS.parse(topic)
        if isinstance(kind, ChunkTopic):
            yield _other_data(payload)
            return
        message, line = signed_messages.split(payload)
        false = self._false(topic, message)
        yield false
        yield signed_messages.splice(false, line)
        number = 1 << 52  # newer than everything
        yield signed_messages.join(false, self._keys.sign(topic, number, false))
        yield from (said for where, said in self._last.items() if where != topic)
        if topic in self._first:
            yield self._first[topic]
        self._first.setdefault(topic, payload)
        self._last[topic] = payload

    def _false(self, topic: str, message: bytes) -> bytes:
        """A round of our own with weights of our own, or the message with something changed."""
        if not isinstance(TOPICS.parse(topic), RoundTopic):
            return message.replace(b'"session"', b'"sessiom"').replace(b'"name"', b'"mane"')
        plan = messages.decode(message, RoundPlan)
        return messages.encode(
            msgspec.structs.replace(plan, round_id=FALSE_ROUND, blobs={"weights": self.weights})
        )


def _other_data(chunk: bytes) -> bytes:
    """Of the same blob, as the header says, and whole, as its checksum says."""
    head, data = chunk[: blobs.HEADER_BYTES], bytes(255 - byte for byte in chunk[56:])
    return head[:20] + crc32(data).to_bytes(4, "big") + head[24:] + data
