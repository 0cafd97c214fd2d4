"""Events and actions that every state machine behind a link shares.

Structs, not dataclasses: a simulator makes millions, and a frozen dataclass takes five times as
long.
"""

from __future__ import annotations

import msgspec


class Started(msgspec.Struct, frozen=True):
    """The process has started; the link is not connected yet."""


class Connected(msgspec.Struct, frozen=True):
    """The link is up, for the first time or again; or takes smaller messages than before.

    Attributes:
        max_payload_bytes: largest payload of a message on this connection.
        session_present: the broker kept our session with its queued messages.
    """

    max_payload_bytes: int
    session_present: bool = False


class Disconnected(msgspec.Struct, frozen=True):
    """The link is down or not up yet, and reconnects by itself; may come several times."""


class BrokerRefused(msgspec.Struct, frozen=True):
    """The broker refused a message or a subscription; the service has logged it.

    Attributes:
        topic: topic of the message, or the topic filter.
        reason: for people.
        is_subscription: it was a subscription, which is over.
    """

    topic: str
    reason: str
    is_subscription: bool = False


class MessageArrived(msgspec.Struct, frozen=True):
    """A message arrived; its payload is not decoded yet."""

    topic: str
    payload: bytes


class Tick(msgspec.Struct, frozen=True):
    """The time that the machine asked to wait has passed."""


class Stopping(msgspec.Struct, frozen=True):
    """The process is about to end."""


LinkedEvent = Started | Connected | Disconnected | BrokerRefused | MessageArrived | Tick | Stopping


class Subscribe(msgspec.Struct, frozen=True):
    """Subscribe to a topic filter."""

    topic_filter: str


class Unsubscribe(msgspec.Struct, frozen=True):
    """Unsubscribe from a topic filter."""

    topic_filter: str


class Publish(msgspec.Struct, frozen=True):
    """Publish a message."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None


LinkAction = Subscribe | Unsubscribe | Publish
