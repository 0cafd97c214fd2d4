"""The Link over a real broker: MQTT 5 with paho, on a network thread that may serve many links.

The owner's thread and the network thread meet in two places: commands that the owner posts (a
deque, drained on the network thread in the order of posting) and events that the network thread
queues. Neither side ever waits for the other, except in `close`.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from random import Random

from broker.link.backoff import FullJitter
from broker.link.connection import Connection
from broker.link.link import (
    ByteCounters,
    LinkEvent,
    Posted,
    Received,
    Will,
    check_filter,
    check_topic,
    publish_packet_bytes,
)
from broker.link.network_loop import NetworkLoop
from broker.link.paho_client import Session
from broker.link.send_queue import Outgoing
from broker.link.settings import BrokerSettings
from broker.link.transport_settings import proxy_arguments
from fedge.errors import LinkError

log = logging.getLogger(__name__)

HOUR_S = 3600
#: Messages that the broker may send ahead of our acknowledgements (MQTT 5 Receive Maximum).
RECEIVE_MAXIMUM = 64
MAX_QUEUED_MESSAGES = 10_000
MAX_QUEUED_BYTES = 64 << 20
#: How long `close` waits beyond the time it gives the messages.
_CLOSE_MARGIN_S = 2.0


class MqttLink:
    """One client's connection to a broker; see `broker.link.link.Link` for the contract.

    Acknowledgement: a message is acknowledged when `poll` returns it, or with `manual_ack` when
    the owner says so. Either way an owner that is slow or dies has at most `receive_maximum`
    messages here, and the broker keeps the rest: nothing is lost silently. After a reconnection
    unacknowledged messages come again, and acknowledgements of those of before go nowhere.

    Byte counters: `up` counts a message once, at `publish`; `down` when it arrives.

    Args:
        settings: which broker, and how.
        client_id: stable: the broker keeps the session under it.
        network: the thread to run on; None: one of its own, closed with the link.
        will: published (retained) when this client vanishes.
        manual_ack: messages are acknowledged by `acknowledge` only.
        session_expiry_s: how long the broker keeps the session while we are away.
        rng: for the jitter of the back-off.
        receive_maximum: messages the broker sends ahead of our acknowledgements.
        max_queued_messages: that wait to be acknowledged by the broker, before `publish` refuses.
        max_queued_bytes: the same in bytes.
        flush_s: how long `close` gives the messages that wait.
        notify: called after each event that `poll` will return, once for each, on whichever thread
            it came from; must only enqueue. So one thread can own many links and poll the one that
            has something.

    Raises:
        ConfigError: a certificate file is unusable.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        network: NetworkLoop | None = None,
        will: Will | None = None,
        manual_ack: bool = False,
        session_expiry_s: int = HOUR_S,
        rng: Random | None = None,
        receive_maximum: int = RECEIVE_MAXIMUM,
        max_queued_messages: int = MAX_QUEUED_MESSAGES,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        flush_s: float = 5.0,
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.counters = ByteCounters()
        self._settings = settings
        self._manual_ack = manual_ack
        self._limits = (max_queued_messages, max_queued_bytes)
        self._flush_s = flush_s
        self._notify = notify
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._commands: deque[Callable[[], None]] = deque()
        self._drain_is_due = False
        self._queue_lock = threading.Lock()
        self._queued_messages = 0
        self._queued_bytes = 0
        self._is_closed = False
        self._is_released = False
        self._done = threading.Event()
        tls = settings.tls.context() if settings.tls else None
        self._own_network = network is None
        self._network = network or NetworkLoop(f"fedge-{client_id}")
        self._connection = Connection(
            settings,
            Session(client_id, will, session_expiry_s, receive_maximum),
            self._network,
            self,
            FullJitter(settings.backoff_min_s, settings.backoff_max_s, rng or Random()),  # noqa: S311 - jitter
            tls,
        )

    # --- the owner's thread ----------------------------------------------------------------------

    def open(self) -> None:
        """Begins to connect, and keeps connecting; returns at once.

        Raises:
            ConfigError: a secret cannot be read, or a proxy cannot be used.
        """
        secrets = self._settings.secrets()
        if secrets.proxy is not None:
            proxy_arguments(secrets.proxy)  # whether it can be used: here, where it can be said
        self._post(lambda: self._connection.open(secrets))

    def subscribe(self, topic_filter: str) -> None:
        """Takes messages of `topic_filter` from now on, across reconnections."""
        check_filter(topic_filter)
        self._post(lambda: self._connection.subscribe(topic_filter))

    def unsubscribe(self, topic_filter: str) -> None:
        """Stops taking them (one or two may be on their way)."""
        self._post(lambda: self._connection.unsubscribe(topic_filter))

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Sends at QoS 1; while disconnected it waits in a bounded queue.

        A message that waited for the first connection and is then larger than the server's limit
        is given up with a logged error: nobody is there to raise to.

        Raises:
            LinkError: larger than a limit, the queue is full, or the link is closed.
        """
        check_topic(topic)
        mqtt5 = self._connection.mqtt5
        packet_bytes = publish_packet_bytes(topic, len(payload), expiry_s, mqtt5=mqtt5)
        self._check_size(topic, len(payload), packet_bytes)
        self._reserve(packet_bytes)
        message = Outgoing(topic, payload, retain, expiry_s, packet_bytes)
        self.counters.up += packet_bytes
        self._post(lambda: self._connection.publish(message))

    def _check_size(self, topic: str, payload_bytes: int, packet_bytes: int) -> None:
        own = self._settings.max_payload_bytes
        if payload_bytes > own:
            raise LinkError(
                f"message on {topic} has {payload_bytes} bytes; max_payload_bytes is {own}"
            )
        servers = self._connection.outbox.max_packet_bytes
        if packet_bytes > servers:
            raise LinkError(
                f"message on {topic} makes a packet of {packet_bytes} bytes;"
                f" broker {self._settings.address} takes {servers}"
            )

    def _reserve(self, packet_bytes: int) -> None:
        messages, size = self._limits
        with self._queue_lock:
            if self._is_closed:
                raise LinkError(f"link to broker {self._settings.address} is closed")
            if self._queued_messages >= messages:
                raise LinkError(
                    f"{self._queued_messages} messages wait to be sent; limit {messages}"
                )
            if self._queued_bytes + packet_bytes > size:
                raise LinkError(
                    f"{self._queued_bytes} bytes wait to be sent, {packet_bytes} more"
                    f" would pass the limit {size}"
                )
            self._queued_messages += 1
            self._queued_bytes += packet_bytes

    def post(self, value: object) -> None:
        """Has `poll` return `Posted(value)`; from any thread, or a signal handler."""
        self.emit(Posted(value))

    def acknowledge(self, received: Received) -> None:
        """Tells the broker that it may forget the message (only with manual acknowledgement)."""
        if self._manual_ack and received.token:
            self._post(lambda: self._connection.acknowledge(received.token))

    def poll(self, timeout_s: float) -> LinkEvent | None:
        """The next event, or None when none came within `timeout_s`."""
        try:
            if timeout_s > 0 and not self._is_closed:
                event = self._events.get(timeout=min(timeout_s, threading.TIMEOUT_MAX))
            else:
                event = self._events.get_nowait()
        except queue.Empty:
            return None
        if isinstance(event, Received) and event.token and not self._manual_ack:
            self._post(lambda: self._connection.acknowledge(event.token))
        return event

    def close(self) -> None:
        """Sends what waits (at most `flush_s`), says goodbye, releases everything.

        Messages that were received and not polled stay with the broker.
        """
        self.begin_close()
        self._await_end(self._flush_s)

    def begin_close(self) -> None:
        """The first half of `close`, which does not wait: for who closes many links at once."""
        self._begin_end(lambda: self._connection.close(self._flush_s))

    def abort(self) -> None:
        """Vanishes without a goodbye, as in a power cut: the broker publishes the will."""
        self._begin_end(self._connection.vanish)
        self._await_end(0.0)

    def interrupt(self) -> None:
        """Loses the connection, as with a cut cable, and reconnects by the usual rules."""
        self._post(self._connection.interrupt)

    def _begin_end(self, command: Callable[[], None]) -> None:
        with self._queue_lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._post(command)

    def _await_end(self, patience_s: float) -> None:
        if self._is_released:
            return
        self._is_released = True
        patience_s += _CLOSE_MARGIN_S + self._settings.connect_timeout_s
        if not self._done.wait(patience_s):
            log.warning("link to broker %s did not close in time", self._settings.address)
        if self._own_network:
            self._network.close()

    def _post(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        # The network thread clears the flag before it empties the deque, so a command that sees
        # it set is seen by that drain. One wake-up serves a burst of commands.
        if not self._drain_is_due:
            self._drain_is_due = True
            if not self._network.call(self._drain):
                self._done.set()  # the network is closed already, and we with it

    # --- the network thread (and `emit`, any) ----------------------------------------------------

    def _drain(self) -> None:
        self._drain_is_due = False
        while self._commands:
            command = self._commands.popleft()
            try:
                command()
            except Exception:  # noqa: BLE001 - the next command must run
                self._network.count_error("error in a link's command")

    def emit(self, event: LinkEvent) -> None:
        """An event for the owner's thread."""
        self._events.put(event)
        if self._notify is not None:
            self._notify()

    def arrived(self, packet_bytes: int) -> None:
        """A message came over the link."""
        self.counters.down += packet_bytes

    def backlog(self) -> int:
        """Events the owner has not taken yet."""
        return self._events.qsize()

    def finished(self, message: Outgoing) -> None:
        """The broker has the message, or it can never be sent."""
        with self._queue_lock:
            self._queued_messages -= 1
            self._queued_bytes -= message.packet_bytes

    def closed(self) -> None:
        """Nothing more will come."""
        self._done.set()
