"""Events and actions that every state machine behind a link shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Started:
    """The process has started; the link is not connected yet."""


@dataclass(frozen=True)
class Connected:
    """The link is up, for the first time or again; or takes smaller messages than before.

    Attributes:
        max_payload_bytes: largest payload of a message on this connection.
        session_present: the broker kept our session with its queued messages.
    """

    max_payload_bytes: int
    session_present: bool = False


@dataclass(frozen=True)
class Disconnected:
    """The link is down or not up yet, and reconnects by itself; may come several times."""


@dataclass(frozen=True)
class BrokerRefused:
    """The broker refused a message or a subscription; the service has logged it.

    Attributes:
        topic: topic of the message, or the topic filter.
        reason: for people.
        is_subscription: it was a subscription, which is over.
    """

    topic: str
    reason: str
    is_subscription: bool = False


@dataclass(frozen=True)
class MessageArrived:
    """A message arrived; its payload is not decoded yet."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Tick:
    """The time that the machine asked to wait has passed."""


@dataclass(frozen=True)
class Stopping:
    """The process is about to end."""


LinkedEvent = Started | Connected | Disconnected | BrokerRefused | MessageArrived | Tick | Stopping


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to a topic filter."""

    topic_filter: str


@dataclass(frozen=True)
class Unsubscribe:
    """Unsubscribe from a topic filter."""

    topic_filter: str


@dataclass(frozen=True)
class Publish:
    """Publish a message."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None


LinkAction = Subscribe | Unsubscribe | Publish
