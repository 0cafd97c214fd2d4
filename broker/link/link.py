"""Link: the connection between a state machine's shell and the broker.

Two implementations pass one conformance suite: `broker.link.mqtt.MqttLink` (paho, a real broker)
and `broker.memory.link.MemoryLink` (simulated broker, virtual time). A shell owns its link from one
thread and gets every event from `poll`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import msgspec

#: Subscriptions and publications are all QoS 1: at least once, and receipts make it once.
QOS = 1
#: MQTT 5 §1.5.4.
_MAX_TOPIC_BYTES = 65_535


@dataclass(frozen=True)
class LinkUp:
    """Event: the link is connected and subscribed.

    It comes again without a LinkDown when the broker takes smaller messages than was known:
    messages that were too large are lost, and retained ones come again.

    Attributes:
        session_present: the broker still had our session, with the messages queued in it.
        max_payload_bytes: largest payload that `publish` accepts on this connection.
        notice: limit that was found, for operators; empty: none.
    """

    session_present: bool
    max_payload_bytes: int
    notice: str = ""


@dataclass(frozen=True)
class LinkDown:
    """Event: the connection is lost or could not be made; the link reconnects by itself.

    Attributes:
        reason: human-readable, with the broker's address.
        refused: the broker denied access: a retry without a change will hardly help.
        busy: the broker takes no more connections for now: a later retry will help.
    """

    reason: str
    refused: bool = False
    busy: bool = False


class Received(msgspec.Struct, frozen=True):
    """Event: a message arrived.

    Attributes:
        topic: topic of the message.
        payload: at most the configured size.
        retain: the broker had stored the message before we subscribed.
        token: identifies the message for `acknowledge`.
    """

    topic: str
    payload: bytes
    retain: bool = False
    token: int = 0


@dataclass(frozen=True)
class Refused:
    """Event: the broker refused a message or a subscription; the link stays up.

    In MQTT 3.1.1 refused messages look delivered.

    Attributes:
        topic: topic of the message, or the topic filter.
        reason: meaning of the reason code (MQTT 5 §2.4).
        next_step: what an operator can do about it.
        is_subscription: it was a subscription, which the link has forgotten.
    """

    topic: str
    reason: str
    next_step: str
    is_subscription: bool = False


class Posted(msgspec.Struct, frozen=True):
    """Event: another thread of this process called `post`."""

    value: object


LinkEvent = LinkUp | LinkDown | Received | Refused | Posted


@dataclass(frozen=True)
class Will:
    """Retained message that the broker publishes when the client vanishes, after `delay_s`."""

    topic: str
    payload: bytes
    delay_s: int = 0


@dataclass
class ByteCounters:
    """Counters of PUBLISH packet bytes: MQTT headers included, TLS and TCP excluded.

    Attributes:
        up: of published messages.
        down: of received messages.
        probes: of test messages for the broker's limit, both ways.
    """

    up: int = 0
    down: int = 0
    probes: int = 0


class Link(Protocol):
    """Connection of one client. All methods but `post` belong to the owner's thread."""

    #: Updated with every message sent or received.
    counters: ByteCounters

    def open(self) -> None:
        """Starts connecting and keeps the link connected; returns at once."""

    def subscribe(self, topic_filter: str) -> None:
        """Subscribes, now and after every reconnection.

        A refusal of a filter that was there before the first connection takes the link down.
        """

    def unsubscribe(self, topic_filter: str) -> None:
        """Ends a subscription."""

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Sends at QoS 1; while disconnected, the message waits in a bounded queue.

        Raises:
            LinkError: larger than the server's limit, or the queue is full (both name the limit).
        """

    def acknowledge(self, received: Received) -> None:
        """Acknowledges a message to the broker (only with manual acknowledgement)."""

    def poll(self, timeout_s: float) -> LinkEvent | None:
        """Returns the next event; None when there is none within `timeout_s`."""

    def post(self, value: object) -> None:
        """Makes `poll` return `Posted(value)`; from any thread, or a signal handler."""

    def close(self) -> None:
        """Sends the waiting messages, disconnects (no will is published), releases everything."""


def publish_packet_bytes(
    topic: str, payload_bytes: int, expiry_s: int | None = None, *, mqtt5: bool = True
) -> int:
    """Returns the length of a QoS 1 PUBLISH packet (MQTT 5 §3.3), as both links count it.

    Fixed header, topic, packet identifier, properties (their length, and message expiry when given;
    none in MQTT 3.1.1), payload.
    """
    properties = 0 if not mqtt5 else 1 if expiry_s is None else 6
    topic_bytes = len(topic) if topic.isascii() else len(topic.encode())
    remaining = 4 + topic_bytes + properties + payload_bytes
    if remaining < 128:
        return remaining + 2
    return remaining + (3 if remaining < 16_384 else 4 if remaining < 2_097_152 else 5)


@lru_cache(maxsize=64)
def check_filter(topic_filter: str) -> str:
    """Returns `topic_filter` if it is valid.

    Raises:
        ValueError: empty, too long, a wildcard that is not alone in its level, or a shared
            subscription.
    """
    if topic_filter.startswith("$share/"):
        # Mosquitto's access-control file lets every client join a group. A message that the group
        # passes to a client without the right to read it is lost: a device could starve the
        # coordinator.
        raise ValueError(f"shared subscriptions are not allowed: {topic_filter[:80]!r}")
    levels = topic_filter.split("/")
    alone = all(len(level) == 1 or not ("+" in level or "#" in level) for level in levels)
    if not alone or "#" in levels[:-1] or not _is_mqtt_string(topic_filter):
        raise ValueError(f"not a topic filter: {topic_filter[:80]!r}")
    return topic_filter


def check_topic(topic: str) -> str:
    """Returns `topic` if a message can be published on it.

    Raises:
        ValueError: empty, too long, or with a wildcard.
    """
    if "+" in topic or "#" in topic or not _is_mqtt_string(topic):
        raise ValueError(f"not a topic to publish on: {topic[:80]!r}")
    return topic


def _is_mqtt_string(text: str) -> bool:
    if not text or "\0" in text:
        return False
    # A character has four bytes at most.
    return 4 * len(text) <= _MAX_TOPIC_BYTES or len(text.encode()) <= _MAX_TOPIC_BYTES
