"""The Link: how a state machine's shell reaches the broker, whichever way messages travel.

Two implementations pass one conformance suite: `broker.link.mqtt.MqttLink` (paho, a real broker)
and `broker.memory.link.MemoryLink` (no broker, virtual time). A shell owns its link from one thread
and takes everything that happens from `poll`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

#: Subscriptions and publications are all QoS 1: at least once, and receipts make it once.
QOS = 1


@dataclass(frozen=True)
class LinkUp:
    """Connected and subscribed.

    Attributes:
        session_present: the broker still had our session (nothing queued was lost by it).
        max_payload_bytes: largest payload that `publish` takes on this connection.
    """

    session_present: bool
    max_payload_bytes: int


@dataclass(frozen=True)
class LinkDown:
    """The connection is gone or could not be made; the link tries again by itself.

    Attributes:
        reason: in words, with the broker's address.
        refused: the broker answered and said no (credentials, access): trying again as we are
            will hardly help.
    """

    reason: str
    refused: bool = False


@dataclass(frozen=True)
class Received:
    """One message.

    Attributes:
        topic: it came on.
        payload: at most the configured size.
        retain: it was stored at the broker when we subscribed.
        token: what `acknowledge` needs.
    """

    topic: str
    payload: bytes
    retain: bool = False
    token: int = 0


@dataclass(frozen=True)
class Posted:
    """Something that another thread of this process handed over with `post`."""

    value: object


LinkEvent = LinkUp | LinkDown | Received | Posted


@dataclass(frozen=True)
class Will:
    """What the broker publishes (retained) for us when we vanish, `delay_s` after it noticed."""

    topic: str
    payload: bytes
    delay_s: int = 0


@dataclass
class ByteCounters:
    """Bytes of the PUBLISH packets that crossed the link, headers included, TLS and TCP not."""

    up: int = 0
    down: int = 0


class Link(Protocol):
    """One client's connection. All but `post` is called from the thread that owns the link."""

    #: Updated as messages are sent and received.
    counters: ByteCounters

    def open(self) -> None:
        """Begin to connect, and keep connecting; returns at once."""

    def subscribe(self, topic_filter: str) -> None:
        """Take messages of `topic_filter` from now on, across reconnections."""

    def unsubscribe(self, topic_filter: str) -> None:
        """Stop taking them."""

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Send at QoS 1; while disconnected it waits in a bounded queue.

        Raises:
            LinkError: larger than the server's limit, or the queue is full (both name the limit).
        """

    def acknowledge(self, received: Received) -> None:
        """Tell the broker that it may forget the message (only with manual acknowledgement)."""

    def poll(self, timeout_s: float) -> LinkEvent | None:
        """The next event, or None when none came within `timeout_s`."""

    def post(self, value: object) -> None:
        """Have the owner's `poll` return `Posted(value)`; from any thread, or a signal handler."""

    def close(self) -> None:
        """Send what waits, say goodbye (no will is published) and release everything."""


def publish_packet_bytes(
    topic: str, payload_bytes: int, expiry_s: int | None = None, *, mqtt5: bool = True
) -> int:
    """Length of a QoS 1 PUBLISH packet (MQTT 5 §3.3): what both links count.

    Fixed header, topic, packet identifier, properties (their length, and message expiry when given;
    none in MQTT 3.1.1), payload.
    """
    properties = 0 if not mqtt5 else 1 if expiry_s is None else 6
    topic_bytes = len(topic) if topic.isascii() else len(topic.encode())
    remaining = 2 + topic_bytes + 2 + properties + payload_bytes
    length_bytes = 1 + (remaining >= 128) + (remaining >= 16_384) + (remaining >= 2_097_152)
    return 1 + length_bytes + remaining
