"""A broker without sockets or threads, in virtual time: retained messages, sessions, wills.

Time is a number that moves from entry to entry of an agenda; entries of the same time keep their
order. With the same route and the same calls, a run repeats itself exactly.

Every packet's journey is asked of one object, the `Route`: faults (loss, delay, duplicates,
partitions) are other routes, not other brokers.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Protocol

from broker.link.link import Link, Received, Will, publish_packet_bytes
from broker.memory.topic_filters import FilterTree, TopicTree


@dataclass(frozen=True)
class Packet:
    """A message on its way between a client and the broker.

    Attributes:
        client_id: whose connection it travels on.
        upward: from the client to the broker.
        topic: of the message.
        packet_bytes: its length, for routes with a bandwidth.
    """

    client_id: str
    upward: bool
    topic: str
    packet_bytes: int


class Route(Protocol):
    """How packets travel: the one place where faults come in."""

    def delays(self, now_s: float, packet: Packet) -> Sequence[float]:
        """Seconds until each copy arrives: one copy is normal, two are a duplicate.

        None at all breaks the connection: TCP loses nothing in silence, so the client notices,
        reconnects, and what was unacknowledged is sent again.
        """

    def connect_s(self, now_s: float, client_id: str) -> float | None:
        """Seconds until a client that connects is connected; None: the broker is out of reach."""


@dataclass(frozen=True)
class PerfectRoute:
    """Everything arrives once, in order, after `delay_s`."""

    delay_s: float = 0.001

    def delays(self, now_s: float, packet: Packet) -> Sequence[float]:
        """One copy."""
        return (self.delay_s,)

    def connect_s(self, now_s: float, client_id: str) -> float | None:
        """A round trip."""
        return 2 * self.delay_s


@dataclass(frozen=True)
class Message:
    """One message, as the broker keeps it. It expires at `expires_at_s`."""

    topic: str
    payload: bytes
    retain: bool = False
    expires_at_s: float = inf

    def expiry_s(self, now_s: float) -> int | None:
        """What is left of the message expiry, as it stands in the packet."""
        return None if self.expires_at_s == inf else max(0, round(self.expires_at_s - now_s))


class Client(Link, Protocol):
    """A link, with what the broker asks of it."""

    client_id: str
    will: Will | None
    session_expiry_s: int

    def take(self, received: Received, packet_bytes: int) -> None:
        """A message has arrived."""

    def interrupt(self) -> None:
        """The connection broke."""

    def taken_over(self) -> None:
        """Another client connected with the same id."""

    def cut_off(self) -> None:
        """The broker has ended, and its connections with it."""


@dataclass(eq=False)
class Session:
    """What the broker knows of one client.

    Attributes:
        link: the connection, if there is one.
        epoch: counts connections and disconnections, so that an entry of the agenda can tell that
            it is out of date.
        waiting: not sent yet, in order.
        sent: not acknowledged yet, by token.
        expiry_s: how long it is kept without a connection.
    """

    client_id: str
    link: Client | None = None
    expiry_s: int = 0
    epoch: int = 0
    filters: dict[str, None] = field(default_factory=dict)
    waiting: deque[Message] = field(default_factory=deque)
    sent: dict[int, Message] = field(default_factory=dict)

    def disconnect(self) -> None:
        """The connection is gone: what it left unacknowledged waits again."""
        self.link = None
        self.epoch += 1
        self.waiting.extendleft(reversed(self.sent.values()))
        self.sent.clear()


#: Whether a message for a client (by id) gets into its queue; else it is gone, and nobody is told.
Admits = Callable[[str, Message], bool]


class MemoryBroker:
    """Retained messages, sessions, wills and the clock they live by.

    Attributes:
        now_s: the virtual time.
        route: how packets travel; may be exchanged at any time.
        admits: the queues' whims; None: they take everything.
        dropped: (client, topic) of messages that got into no queue.

    Args:
        route: None: perfect, 1 ms each way.
        max_payload_bytes: the "server's limit".
        notice_s: how long the broker takes to notice that a client has vanished.
        receive_maximum: messages sent ahead of a client's acknowledgements.
        max_queued_messages: that wait for one client; more are dropped in silence, as Mosquitto
            does (its publisher has been told Success by then). None: no limit.
    """

    def __init__(
        self,
        route: Route | None = None,
        *,
        max_payload_bytes: int = 1 << 20,
        notice_s: float = 0.0,
        receive_maximum: int = 64,
        max_queued_messages: int | None = None,
    ) -> None:
        self.now_s = 0.0
        self.admits: Admits | None = None
        self.dropped: set[tuple[str, str]] = set()
        self._max_queued = max_queued_messages
        self.route: Route = route or PerfectRoute()
        self.max_payload_bytes = max_payload_bytes
        self._notice_s = notice_s
        self._receive_maximum = receive_maximum
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entries = 0
        self._tokens = 0
        self._retained: TopicTree[Message] = TopicTree()
        self._filters: FilterTree[Session] = FilterTree()
        self._sessions: dict[str, Session] = {}
        self._ready: dict[Client, None] = {}

    # --- time ------------------------------------------------------------------------------------

    def at(self, when_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Has `function` called at a time (not before now), after what was entered earlier."""
        self._entries += 1
        entry = (max(when_s, self.now_s), self._entries, function, arguments)
        heapq.heappush(self._agenda, entry)

    def advance(self, until_s: float) -> bool:
        """Does the next thing on the agenda; False, and it is `until_s`, when none is due by then.

        An `until_s` of infinity stops the clock at the last entry.
        """
        if self._agenda and self._agenda[0][0] <= until_s:
            self.now_s, _, function, arguments = heapq.heappop(self._agenda)
            function(*arguments)
            return True
        if until_s != inf:
            self.now_s = max(self.now_s, until_s)
        return False

    def next_ready(self) -> Client | None:
        """A link that has an event to poll, the longest waiting first; None: there is none.

        For a simulator that drives many links: advance, then serve those that are ready.
        """
        return next(iter(self._ready), None)

    def set_ready(self, link: Client, ready: bool) -> None:
        """A link has events to poll, or none any more."""
        if ready:
            self._ready[link] = None
        else:
            self._ready.pop(link, None)

    # --- what clients do (called when their packets arrive) --------------------------------------

    def attach(self, link: Client) -> bool:
        """Connects a link; True when there was a session."""
        former = self._sessions.get(link.client_id)
        if former is not None and former.link is not None:
            other = former.link
            self.detach(other, other.will, 0.0)
            other.taken_over()
        session = self._sessions.setdefault(link.client_id, Session(link.client_id))
        session.link, session.expiry_s = link, link.session_expiry_s
        session.epoch += 1
        return session is former

    def vanish(self, link: Client) -> None:
        """A connection broke; the broker will notice."""
        self.detach(link, link.will, self._notice_s)

    def detach(self, link: Client, will: Will | None, notice_s: float) -> None:
        """Ends a connection; `will` is what the broker has to say about it."""
        session = self._sessions.get(link.client_id)
        if session is None or session.link is not link:
            return
        session.disconnect()
        expiry_s = link.session_expiry_s
        if will is not None:
            wait_s = notice_s + min(will.delay_s, expiry_s)
            self._after(wait_s, self._publish_will, session, session.epoch, will)
        self._after(notice_s + expiry_s, self._expire, session, session.epoch)

    def _after(self, wait_s: float, function: Callable[..., None], *arguments: Any) -> None:
        if wait_s > 0:
            self.at(self.now_s + wait_s, function, *arguments)
        else:
            function(*arguments)

    def _publish_will(self, session: Session, epoch: int, will: Will) -> None:
        if session.epoch == epoch:  # else it came back in time
            self.accept(Message(will.topic, will.payload, retain=True))

    def _expire(self, session: Session, epoch: int) -> None:
        if session.epoch == epoch:
            for topic_filter in session.filters:
                self._filters.discard(topic_filter, session.client_id)
            del self._sessions[session.client_id]

    def subscribe(self, client_id: str, topic_filter: str) -> None:
        """Adds a filter to a session and sends what is retained under it."""
        session = self._sessions[client_id]
        session.filters[topic_filter] = None
        self._filters.add(topic_filter, client_id, session)
        for topic, message in self._retained.matching(topic_filter):
            if message.expires_at_s <= self.now_s:
                self._retained.discard(topic)
            else:
                self._queue(session, message)
        self._push(session)

    def unsubscribe(self, client_id: str, topic_filter: str) -> None:
        """Removes it."""
        self._sessions[client_id].filters.pop(topic_filter, None)
        self._filters.discard(topic_filter, client_id)

    def accept(self, message: Message) -> None:
        """Stores a message if it is to be retained, and passes it to every subscriber."""
        if message.retain and message.payload:
            self._retained.put(message.topic, message)
        elif message.retain:
            self._retained.discard(message.topic)
        live = replace(message, retain=False) if message.retain else message
        for session in self._filters.matching(message.topic).values():
            self._queue(session, live)
            self._push(session)

    def _queue(self, session: Session, message: Message) -> None:
        full = self._max_queued is not None and len(session.waiting) >= self._max_queued
        if not full and (self.admits is None or self.admits(session.client_id, message)):
            session.waiting.append(message)
        else:
            self.dropped.add((session.client_id, message.topic))

    def restart(
        self, *, lose_queued: bool = True, lose_retained: bool = True, lose_sessions: bool = True
    ) -> None:
        """Ends and is back, without what it had not written to its disk.

        Every connection is lost, and the wills with them: nobody is there to publish them.
        Mosquitto killed with its default persistence (autosave every 1,800 s) loses all three.
        """
        links = [session.link for session in self._sessions.values() if session.link is not None]
        for session in list(self._sessions.values()):
            session.disconnect()  # a new epoch: wills and expiries on the agenda are void
            if lose_queued:
                session.waiting.clear()
            expiry_s = 0 if lose_sessions else session.expiry_s
            self._after(expiry_s, self._expire, session, session.epoch)
        if lose_retained:
            self._retained = TopicTree()
        for link in links:
            link.cut_off()

    def retained(self, topic: str) -> bytes | None:
        """What is retained on a topic."""
        found = [message.payload for _, message in self._retained.matching(topic)]
        return found[0] if found else None

    def backlog(self, client_id: str) -> int:
        """Messages that the broker keeps for a client: waiting, and sent without its answer."""
        session = self._sessions.get(client_id)
        return 0 if session is None else len(session.waiting) + len(session.sent)

    def acknowledge(self, client_id: str, token: int) -> None:
        """Forgets a message, unless the token is of an earlier connection."""
        session = self._sessions.get(client_id)
        if session is not None and session.sent.pop(token, None) is not None and session.waiting:
            self._push(session)

    def resume(self, client_id: str) -> None:
        """Sends what waited for a client while it was away."""
        self._push(self._sessions[client_id])

    def _push(self, session: Session) -> None:
        """Sends what waits for a client, as far ahead as it may."""
        while session.link and session.waiting and len(session.sent) < self._receive_maximum:
            message = session.waiting.popleft()
            if message.expires_at_s <= self.now_s:
                continue
            self._tokens += 1
            session.sent[self._tokens] = message
            size = publish_packet_bytes(
                message.topic, len(message.payload), message.expiry_s(self.now_s)
            )
            packet = Packet(session.client_id, False, message.topic, size)
            delays = self.route.delays(self.now_s, packet)
            if not delays:
                session.link.interrupt()
            for delay_s in delays:
                self.at(
                    self.now_s + delay_s,
                    self._hand_over,
                    session,
                    session.epoch,
                    Received(message.topic, message.payload, message.retain, self._tokens),
                    size,
                )

    def _hand_over(self, session: Session, epoch: int, received: Received, size: int) -> None:
        if session.epoch == epoch and session.link is not None:
            session.link.take(received, size)
