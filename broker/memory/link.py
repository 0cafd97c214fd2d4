"""Link to a simulated broker: in memory, in virtual time, without threads or waiting.

`MemoryLink` passes the same conformance suite as `MqttLink`, so a service runs on either without a
difference: what the simulator proves is what runs on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cached_property
from math import inf
from random import Random
from typing import Any

from broker.link.backoff import STABLE_S, FullJitter
from broker.link.link import (
    ByteCounters,
    LinkDown,
    LinkEvent,
    LinkUp,
    Posted,
    Received,
    Will,
    check_filter,
    check_topic,
)
from broker.memory.broker import MemoryBroker, Message, Packet, PerfectRoute, Route
from fedge.errors import LinkError

__all__ = ["MemoryBroker", "MemoryLink", "Packet", "PerfectRoute", "Route"]


class MemoryLink:
    """Connection of one client to a `MemoryBroker`; see `broker.link.link.Link` for the contract.

    `poll` moves the virtual clock to the link's next event, or by its timeout. Acknowledgements
    take no time. Byte counters as in `MqttLink`.

    Args:
        broker: the broker and its clock.
        client_id: stable, because the broker keeps the session under it.
        will: published (retained) when this client vanishes.
        manual_ack: messages are acknowledged by `acknowledge` only.
        session_expiry_s: how long the broker keeps the session while we are disconnected.
        rng: makes the generator for the jitter of the back-off, once it is needed; None: one seeded
            with the client id.
        max_queued_messages: limit of messages that have not reached the broker.
        max_queued_bytes: limit of their bytes.
        backoff_min_s: as in `BrokerSettings`.
        backoff_max_s: as in `BrokerSettings`.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: Will | None = None,
        manual_ack: bool = False,
        session_expiry_s: int = 3600,
        rng: Callable[[], Random] | None = None,
        max_queued_messages: int = 10_000,
        max_queued_bytes: int = 64 << 20,
        backoff_min_s: float = 0.5,
        backoff_max_s: float = 60.0,
    ) -> None:
        self.counters = ByteCounters()
        self.client_id = client_id
        self.will = will
        self.session_expiry_s = session_expiry_s
        self._broker = broker
        self._manual_ack = manual_ack
        self._limits = (max_queued_messages, max_queued_bytes)
        self._backoff_s = (backoff_min_s, backoff_max_s)
        self._rng = rng
        self._events: deque[LinkEvent] = deque()
        self._filters: dict[str, None] = {}
        self._dropped_filters: dict[str, None] = {}
        self._out: dict[int, Message] = {}  # messages that have not reached the broker
        self._out_bytes = 0
        self._published = 0
        self._up = False
        self._closed = False
        self._connection = 0  # counts connections: packets of an earlier one never arrive
        self._last_arrival_s = 0.0
        self._up_since_s = 0.0
        self._last_reason = ""

    @cached_property
    def _backoff(self) -> FullJitter:
        # Not before it is needed: a generator takes 2.5 kB and more time than a message.
        rng = Random(self.client_id) if self._rng is None else self._rng()  # noqa: S311
        return FullJitter(*self._backoff_s, rng)

    def open(self) -> None:
        """Starts connecting and keeps the link connected."""
        delay_s = self._broker.route.connect_s(self._broker.now_s, self.client_id)
        if delay_s is None:
            self._down("cannot reach the broker")
        else:
            self._broker.at(self._broker.now_s + delay_s, self._connect, self._connection)

    def _connect(self, connection: int) -> None:
        if self._closed or self._up or connection != self._connection:
            return
        present = self._broker.attach(self)
        self._connection += 1
        self._up = True
        self._last_reason = ""
        self._up_since_s = self._broker.now_s
        self._emit(LinkUp(present, self._broker.max_payload_bytes))
        for topic_filter in self._dropped_filters:
            self._broker.unsubscribe(self.client_id, topic_filter)
        self._dropped_filters.clear()
        self._broker.resume(self.client_id)
        for topic_filter in list(self._filters):
            if self._up:  # a route may break the connection meanwhile
                self._broker.subscribe(self.client_id, topic_filter)
        for number, message in list(self._out.items()):
            self._travel(message.topic, message.packet_bytes, self._arrive, number, message)

    def subscribe(self, topic_filter: str) -> None:
        """Subscribes, now and after every reconnection."""
        self._filters[check_filter(topic_filter)] = None
        self._dropped_filters.pop(topic_filter, None)
        self._travel(topic_filter, len(topic_filter) + 8, self._subscribe_arrives, topic_filter)

    def _subscribe_arrives(self, topic_filter: str) -> None:
        if topic_filter in self._filters:
            self._broker.subscribe(self.client_id, topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """Ends a subscription."""
        self._filters.pop(topic_filter, None)
        self._dropped_filters[topic_filter] = None
        self._travel(topic_filter, len(topic_filter) + 7, self._unsubscribe_arrives, topic_filter)

    def _unsubscribe_arrives(self, topic_filter: str) -> None:
        if self._dropped_filters.pop(topic_filter, 0) is None:
            self._broker.unsubscribe(self.client_id, topic_filter)

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Sends at QoS 1; while disconnected, the message waits in a bounded queue.

        Raises:
            LinkError: the message is too large, the queue is full, or the link is closed.
        """
        check_topic(topic)
        expires_at_s = inf if expiry_s is None else self._broker.now_s + expiry_s
        message = Message.of(topic, payload, retain=retain, expires_at_s=expires_at_s)
        self._check(topic, len(payload), message.packet_bytes)
        self._published += 1
        self._out[self._published] = message
        self._out_bytes += message.packet_bytes
        self.counters.up += message.packet_bytes
        self._travel(topic, message.packet_bytes, self._arrive, self._published, message)

    def _check(self, topic: str, payload_bytes: int, packet_bytes: int) -> None:
        if self._closed:
            raise LinkError("link is closed")
        if payload_bytes > self._broker.max_payload_bytes:
            raise LinkError(
                f"message on {topic} has {payload_bytes} bytes;"
                f" max_payload_bytes is {self._broker.max_payload_bytes}"
            )
        messages, size = self._limits
        if len(self._out) >= messages:
            raise LinkError(f"{len(self._out)} messages wait to be sent; limit {messages}")
        if self._out_bytes + packet_bytes > size:
            raise LinkError(
                f"{self._out_bytes} bytes wait to be sent, {packet_bytes} more"
                f" would pass the limit {size}"
            )

    def _arrive(self, number: int, message: Message) -> None:
        if self._out.pop(number, None) is not None:  # a duplicate was removed already
            self._out_bytes -= message.packet_bytes
        if message.expires_at_s > self._broker.now_s:
            self._broker.accept(message)

    def _travel(self, topic: str, size: int, arrives: Callable[..., None], *arguments: Any) -> None:
        """Sends a packet to the broker, which gets it unless the connection ends first."""
        if not self._up:
            return
        broker = self._broker
        delays = broker.route.delays(broker.now_s, Packet(self.client_id, True, topic, size))
        if not delays:
            self.interrupt()
        for delay_s in delays:
            when_s = broker.now_s + delay_s
            if when_s > self._last_arrival_s:
                self._last_arrival_s = when_s
            broker.at(when_s, self._arrived, self._connection, arrives, arguments)

    def _arrived(
        self, connection: int, arrives: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if connection == self._connection:
            arrives(*arguments)

    def acknowledge(self, received: Received) -> None:
        """Acknowledges a message to the broker (only with manual acknowledgement)."""
        if self._manual_ack and self._up:
            self._broker.acknowledge(self.client_id, received.token)

    def poll(self, timeout_s: float) -> LinkEvent | None:
        """Returns the next event, moving the clock by up to `timeout_s`; None: no event."""
        broker, events = self._broker, self._events
        if not events:
            until_s = broker.now_s + max(timeout_s, 0.0)
            while not events:
                if self._closed or not broker.advance(until_s):
                    return None
        event = events.popleft()
        if not events:
            broker.ready.pop(self, None)
        if not self._manual_ack and self._up and isinstance(event, Received):
            broker.acknowledge(self.client_id, event.token)
        return event

    def post(self, value: object) -> None:
        """Makes `poll` return `Posted(value)`."""
        self._emit(Posted(value))

    def close(self) -> None:
        """Disconnects after all sent packets have arrived; no will is published."""
        if not self._closed:
            self._closed = True
            if self._up:
                when_s = max(self._last_arrival_s, self._broker.now_s)
                self._broker.at(when_s, self._leave, self._connection)

    def _leave(self, connection: int) -> None:
        if connection == self._connection and self._up:
            self._mark_disconnected()
            self._broker.detach(self, None, 0.0)

    def abort(self) -> None:
        """Vanishes without DISCONNECT, as in a power cut: the broker publishes the will."""
        if self._up:
            self._mark_disconnected()
            self._broker.vanish(self)
        self._closed = True

    def interrupt(self) -> None:
        """Loses the connection, as with a cut cable, and reconnects by the usual rules."""
        if self._up:
            self._mark_disconnected()
            self._broker.vanish(self)
            self._down("connection to the broker lost")

    def taken_over(self) -> None:
        """Disconnects because another client connected with our id; called by the broker."""
        self._mark_disconnected()
        self._down(
            f"session of {self.client_id!r} was taken over:"
            " another client connected with the same id"
        )

    def cut_off(self) -> None:
        """Disconnects because the broker ended, without a will; called by the broker."""
        self._mark_disconnected()
        self._down("connection to the broker lost")

    @property
    def unsent(self) -> int:
        """Number of messages that have not reached the broker; at most `max_queued_messages`."""
        return len(self._out)

    def _mark_disconnected(self) -> None:
        self._up = False
        self._connection += 1
        if self._broker.now_s - self._up_since_s >= STABLE_S and "_backoff" in vars(self):
            self._backoff.reset()

    def _down(self, reason: str) -> None:
        """Reports a lost or failed connection; reconnects after the back-off."""
        if self._closed:
            return
        if reason != self._last_reason:  # a failure that repeats itself is one event
            self._last_reason = reason
            self._emit(LinkDown(reason))
        again_s = self._broker.now_s + self._backoff.next_s()
        self._broker.at(again_s, self._retry, self._connection)

    def _retry(self, connection: int) -> None:
        if connection == self._connection and not (self._up or self._closed):
            self.open()

    def take(self, received: Received, packet_bytes: int) -> None:
        """Receives a message; called by the broker."""
        self.counters.down += packet_bytes
        self._emit(received)

    def _emit(self, event: LinkEvent) -> None:
        self._events.append(event)
        self._broker.ready[self] = None
