"""Simulated broker in virtual time, without sockets or threads: retained messages, sessions, wills.

Virtual time moves from entry to entry of an agenda; entries with the same time keep their order.
With the same route and the same calls, runs are identical.

A `Route` decides how each packet travels: faults (loss, delay, duplicates, partitions) are other
routes, not other brokers.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import msgspec

from broker.link.link import Link, Received, Will, publish_packet_bytes
from broker.memory.topic_filters import FilterTree, TopicTree


class Packet(msgspec.Struct, frozen=True):
    """Packet in flight between a client and the broker.

    Attributes:
        client_id: client of the connection.
        upward: from the client to the broker.
        topic: topic of the message.
        packet_bytes: length, for routes with a bandwidth.
    """

    client_id: str
    upward: bool
    topic: str
    packet_bytes: int


class Route(Protocol):
    """Model of the network: delays, faults and connection times."""

    def delays(self, now_s: float, packet: Packet) -> Sequence[float]:
        """Returns the delay of each copy in seconds: one copy is normal, two are a duplicate.

        No copy means that the connection breaks: TCP does not lose data silently, so the client
        notices, reconnects, and unacknowledged messages are sent again.
        """

    def connect_s(self, now_s: float, client_id: str) -> float | None:
        """Returns the seconds that connecting takes; None: the broker is unreachable."""


@dataclass(frozen=True)
class PerfectRoute:
    """Route without faults: each packet arrives once, in order, after `delay_s`."""

    delay_s: float = 0.001

    def delays(self, now_s: float, packet: Packet) -> Sequence[float]:
        """Returns one delay."""
        return (self.delay_s,)

    def connect_s(self, now_s: float, client_id: str) -> float | None:
        """Returns the time of a round trip."""
        return 2 * self.delay_s


class Message(msgspec.Struct, frozen=True):
    """Message stored by the broker until `expires_at_s`.

    Attributes:
        topic: topic of the message.
        payload: of the message.
        retain: it is stored for later subscribers, or was.
        expires_at_s: no packet with it is sent from then on.
        packet_bytes: length of a packet with it: the same in every packet.
    """

    topic: str
    payload: bytes
    retain: bool
    expires_at_s: float
    packet_bytes: int

    @classmethod
    def of(
        cls, topic: str, payload: bytes, *, retain: bool = False, expires_at_s: float = inf
    ) -> Message:
        """Returns a message."""
        expiry_s = None if expires_at_s == inf else 0  # any number: all take four bytes
        size = publish_packet_bytes(topic, len(payload), expiry_s)
        return cls(topic, payload, retain, expires_at_s, size)


class Client(Link, Protocol):
    """Link with the methods that the broker calls."""

    client_id: str
    will: Will | None
    session_expiry_s: int

    def take(self, received: Received, packet_bytes: int) -> None:
        """Delivers a message."""

    def interrupt(self) -> None:
        """Breaks the connection."""

    def taken_over(self) -> None:
        """Disconnects because another client connected with the same id."""

    def cut_off(self) -> None:
        """Disconnects because the broker ended."""


@dataclass(eq=False, slots=True)
class Session:
    """Session of one client at the broker.

    Attributes:
        link: the connection, if there is one.
        epoch: counts connections and disconnections, so that an entry of the agenda can tell that
            it is out of date.
        waiting: messages not sent yet, in order.
        sent: messages not acknowledged yet, by token.
        expiry_s: how long the session is kept without a connection.
    """

    client_id: str
    link: Client | None = None
    expiry_s: int = 0
    epoch: int = 0
    filters: dict[str, None] = field(default_factory=dict)
    waiting: deque[Message] = field(default_factory=deque)
    sent: dict[int, Message] = field(default_factory=dict)

    def disconnect(self) -> None:
        """Ends the connection: its unacknowledged messages wait again."""
        self.link = None
        self.epoch += 1
        self.waiting.extendleft(reversed(self.sent.values()))
        self.sent.clear()


#: Decides whether a message enters the queue of a client (by id); else it is lost silently.
Admits = Callable[[str, Message], bool]


class MemoryBroker:
    """Simulated broker with its virtual clock.

    Attributes:
        now_s: the virtual time.
        route: model of the network; may be replaced at any time.
        admits: decides which messages enter a queue; None: all.
        dropped: (client, topic) of messages that did not enter a queue.
        ready: links with events to poll, the one that has waited longest first. Links keep it; a
            simulator that drives many advances the clock, then serves the ready links.

    Args:
        route: None: no faults, 1 ms each way.
        max_payload_bytes: the server's limit.
        notice_s: time until the broker notices that a client has vanished.
        receive_maximum: messages sent ahead of a client's acknowledgements.
        max_queued_messages: limit for one client; more are dropped silently, as by Mosquitto
            (which has told the publisher Success by then). None: no limit.
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
        #: Entries of the agenda by time, and these times as a heap: in a fleet, many are the same.
        self._agenda: dict[float, deque[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        self._times_s: list[float] = []
        self._tokens = 0
        self._retained: TopicTree[Message] = TopicTree()
        self._filters: FilterTree[Session] = FilterTree()
        self._sessions: dict[str, Session] = {}
        self.ready: dict[Client, None] = {}

    # --- time ------------------------------------------------------------------------------------

    def at(self, when_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Calls `function` at a time (not before now), after earlier entries of the same time."""
        due_s = when_s if when_s > self.now_s else self.now_s
        entries = self._agenda.get(due_s)
        if entries is None:
            self._agenda[due_s] = deque(((function, arguments),))
            heapq.heappush(self._times_s, due_s)
        else:
            entries.append((function, arguments))

    def advance(self, until_s: float) -> bool:
        """Runs the next entry of the agenda; if none is due, sets the time and returns False.

        An `until_s` of infinity stops the clock at the last entry.
        """
        times_s = self._times_s
        if times_s and times_s[0] <= until_s:
            self.now_s = due_s = times_s[0]
            entries = self._agenda[due_s]
            function, arguments = entries.popleft()
            if not entries:
                heapq.heappop(times_s)
                del self._agenda[due_s]
            function(*arguments)
            return True
        if until_s != inf:
            self.now_s = max(self.now_s, until_s)
        return False

    # --- clients' packets (called when they arrive) ----------------------------------------------

    def attach(self, link: Client) -> bool:
        """Connects a link; returns whether there was a session."""
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
        """Breaks a connection; the broker notices after `notice_s`."""
        self.detach(link, link.will, self._notice_s)

    def detach(self, link: Client, will: Will | None, notice_s: float) -> None:
        """Ends a connection; `will` is the message to publish about it, if any."""
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
        if session.epoch == epoch:  # else the client reconnected in time
            self.accept(Message.of(will.topic, will.payload, retain=True))

    def _expire(self, session: Session, epoch: int) -> None:
        if session.epoch == epoch:
            for topic_filter in session.filters:
                self._filters.discard(topic_filter, session.client_id)
            del self._sessions[session.client_id]

    def subscribe(self, client_id: str, topic_filter: str) -> None:
        """Adds a filter to a session and sends the retained messages that match."""
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
        """Removes a filter from a session."""
        self._sessions[client_id].filters.pop(topic_filter, None)
        self._filters.discard(topic_filter, client_id)

    def accept(self, message: Message) -> None:
        """Stores a retained message, and passes every message to its subscribers."""
        if message.retain and message.payload:
            self._retained.put(message.topic, message)
        elif message.retain:
            self._retained.discard(message.topic)
        live, most = message, self._receive_maximum
        if message.retain:
            live = msgspec.structs.replace(message, retain=False)
        for session in self._filters.matching(message.topic).values():
            may_send = session.link is not None and len(session.sent) < most
            if may_send and not session.waiting and self.admits is None:
                self._send(session, live)  # as below, which most messages need not
                continue
            self._queue(session, live)
            if may_send:
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
        """Restarts the broker without the data that was not on its disk.

        All connections end, without wills: no broker runs to publish them. Mosquitto killed with
        its default persistence (autosave every 1,800 s) loses all three.
        """
        links = [session.link for session in self._sessions.values() if session.link is not None]
        for session in list(self._sessions.values()):
            session.disconnect()  # a new epoch: cancels wills and expiries on the agenda
            if lose_queued:
                session.waiting.clear()
            expiry_s = 0 if lose_sessions else session.expiry_s
            self._after(expiry_s, self._expire, session, session.epoch)
        if lose_retained:
            self._retained = TopicTree()
        for link in links:
            link.cut_off()

    def retained(self, topic: str) -> bytes | None:
        """Returns the payload retained on a topic; None: none."""
        found = [message.payload for _, message in self._retained.matching(topic)]
        return found[0] if found else None

    def backlog(self, client_id: str) -> int:
        """Returns how many messages wait for a client or for its acknowledgement."""
        session = self._sessions.get(client_id)
        return 0 if session is None else len(session.waiting) + len(session.sent)

    def acknowledge(self, client_id: str, token: int) -> None:
        """Takes an acknowledgement; ignores tokens of earlier connections."""
        session = self._sessions.get(client_id)
        if session is not None and session.sent.pop(token, None) is not None and session.waiting:
            self._push(session)

    def resume(self, client_id: str) -> None:
        """Sends the messages that waited while a client was disconnected."""
        self._push(self._sessions[client_id])

    def _push(self, session: Session) -> None:
        """Sends the waiting messages of a client, up to `receive_maximum`."""
        most = self._receive_maximum
        while session.waiting and session.link is not None and len(session.sent) < most:
            self._send(session, session.waiting.popleft())

    def _send(self, session: Session, message: Message) -> None:
        now_s, topic, size = self.now_s, message.topic, message.packet_bytes
        if message.expires_at_s <= now_s or session.link is None:
            return
        self._tokens = token = self._tokens + 1
        session.sent[token] = message
        delays = self.route.delays(now_s, Packet(session.client_id, False, topic, size))
        if not delays:
            session.link.interrupt()
        received = Received(topic, message.payload, message.retain, token)
        for delay_s in delays:
            self.at(now_s + delay_s, self._hand_over, session, session.epoch, received, size)

    def _hand_over(self, session: Session, epoch: int, received: Received, size: int) -> None:
        link = session.link
        if session.epoch == epoch and link is not None:
            link.take(received, size)
