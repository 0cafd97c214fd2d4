"""Events and actions that every state machine behind a link shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Started:
    """The process begins; nothing is connected yet."""


@dataclass(frozen=True)
class Connected:
    """The link is up, for the first time or again.

    Attributes:
        max_payload_bytes: what a message may hold on this connection.
        session_present: the broker still has what was queued for us.
    """

    max_payload_bytes: int
    session_present: bool = False


@dataclass(frozen=True)
class Disconnected:
    """The link is down, or not up yet; it tries again by itself. May come several times."""


@dataclass(frozen=True)
class MessageArrived:
    """A message, not looked at yet."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Stopping:
    """The process is about to end."""


LinkedEvent = Started | Connected | Disconnected | MessageArrived | Tick | Stopping


@dataclass(frozen=True)
class Subscribe:
    """Take messages of a filter."""

    topic_filter: str


@dataclass(frozen=True)
class Unsubscribe:
    """Stop taking them."""

    topic_filter: str


@dataclass(frozen=True)
class Publish:
    """Send a message."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None


LinkAction = Subscribe | Unsubscribe | Publish
LINK_ACTIONS = (Subscribe, Unsubscribe, Publish)
