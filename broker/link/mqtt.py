"""Link over a real broker: MQTT with paho, on a network thread that may serve many links.

The owner's thread and the network thread exchange commands (a deque that the network thread drains
in order) and events (a queue that `poll` reads). Neither thread waits for the other, except in
`close`.
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
#: Extra time of `close` beyond `flush_s`.
_CLOSE_MARGIN_S = 2.0


class MqttLink:
    """Connection of one client to a broker; see `broker.link.link.Link` for the contract.

    A message is acknowledged when `poll` returns it, or with `manual_ack` when the owner calls
    `acknowledge`. Either way at most `receive_maximum` messages wait here for a slow owner, and the
    broker keeps the rest: none is lost silently. After a reconnection the broker delivers
    unacknowledged messages again, and acknowledgements of earlier deliveries are ignored.

    Byte counters: `up` counts a message once, at `publish`; `down` when it arrives.

    Args:
        settings: how to reach the broker.
        client_id: stable, because the broker keeps the session under it.
        network: network thread; None: a new one, closed with the link.
        will: published (retained) when this client vanishes.
        manual_ack: messages are acknowledged by `acknowledge` only.
        session_expiry_s: how long the broker keeps the session while we are disconnected.
        rng: for the jitter of the back-off.
        receive_maximum: messages the broker sends ahead of our acknowledgements.
        max_queued_messages: limit of messages that the broker has not acknowledged.
        max_queued_bytes: limit of their bytes.
        flush_s: time that `close` leaves for waiting messages.
        probe_topic: topic that this client alone writes and reads: tells how large a message the
            broker takes; empty: none.
        notify: called once for each event that `poll` will return, on the thread that caused the
            event; must only enqueue. With it one thread can own many links and poll the right one.

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
        probe_topic: str = "",
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
            probe_topic,
        )

    # --- the owner's thread ----------------------------------------------------------------------

    def open(self) -> None:
        """Starts connecting and keeps the link connected; returns at once.

        Raises:
            ConfigError: a secret cannot be read, or a proxy cannot be used.
        """
        secrets = self._settings.secrets()
        if secrets.proxy is not None:
            proxy_arguments(secrets.proxy)  # raises here if the proxy cannot be used
        self._post(lambda: self._connection.open(secrets))

    def subscribe(self, topic_filter: str) -> None:
        """Subscribes, now and after every reconnection."""
        check_filter(topic_filter)
        self._post(lambda: self._connection.subscribe(topic_filter))

    def unsubscribe(self, topic_filter: str) -> None:
        """Ends a subscription; messages in flight may still arrive."""
        self._post(lambda: self._connection.unsubscribe(topic_filter))

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Sends at QoS 1; while disconnected, the message waits in a bounded queue.

        If a message waits for the first connection and then exceeds the server's limit, the link
        logs an error and drops the message.

        Raises:
            LinkError: the message is larger than a limit, the queue is full, or the link is closed.
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
        limit = self._settings.max_payload_bytes
        if payload_bytes > limit:
            raise LinkError(
                f"message on {topic} has {payload_bytes} bytes; max_payload_bytes is {limit}"
            )
        outbox = self._connection.outbox
        if payload_bytes > outbox.max_payload_bytes:
            raise LinkError(
                f"message on {topic} has {payload_bytes} bytes;"
                f" broker {self._settings.address} takes {outbox.max_payload_bytes}"
            )
        server_limit = outbox.max_packet_bytes
        if packet_bytes > server_limit:
            raise LinkError(
                f"message on {topic} makes a packet of {packet_bytes} bytes;"
                f" the limit of broker {self._settings.address} is {server_limit}"
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
        """Makes `poll` return `Posted(value)`; from any thread, or a signal handler."""
        self.emit(Posted(value))

    def acknowledge(self, received: Received) -> None:
        """Acknowledges a message to the broker (only with manual acknowledgement)."""
        if self._manual_ack and received.token:
            self._post(lambda: self._connection.acknowledge(received.token))

    def poll(self, timeout_s: float) -> LinkEvent | None:
        """Returns the next event; None when there is none within `timeout_s`."""
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
        """Sends the waiting messages (for at most `flush_s`), disconnects, releases everything.

        Messages that were received and not polled stay with the broker.
        """
        self.begin_close()
        self._await_end(self._flush_s)

    def begin_close(self) -> None:
        """Starts closing without waiting, for a caller that closes many links at once."""
        self._begin_end(lambda: self._connection.close(self._flush_s))

    def abort(self) -> None:
        """Vanishes without DISCONNECT, as in a power cut: the broker publishes the will."""
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

    def _await_end(self, timeout_s: float) -> None:
        if self._is_released:
            return
        self._is_released = True
        timeout_s += _CLOSE_MARGIN_S + self._settings.connect_timeout_s
        if not self._done.wait(timeout_s):
            log.warning(
                "link to broker %s did not close within %.1f s", self._settings.address, timeout_s
            )
        if self._own_network:
            self._network.close()

    def _post(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        # The network thread clears the flag before it empties the deque, so a drain that is due
        # sees this command too. One wake-up serves a burst of commands.
        if not self._drain_is_due:
            self._drain_is_due = True
            if not self._network.call(self._drain):
                self._done.set()  # the network thread has ended, and the link with it

    # --- the network thread (and `emit`, any) ----------------------------------------------------

    def _drain(self) -> None:
        self._drain_is_due = False
        while self._commands:
            command = self._commands.popleft()
            try:
                command()
            except Exception:  # noqa: BLE001 - the next command must run
                self._network.count_error("error in a command of a link")

    def emit(self, event: LinkEvent) -> None:
        """Queues an event for the owner's thread."""
        self._events.put(event)
        if self._notify is not None:
            self._notify()

    def arrived(self, packet_bytes: int) -> None:
        """Counts the bytes of a message."""
        self.counters.down += packet_bytes

    def probed(self, packet_bytes: int) -> None:
        """Counts the bytes of a test message."""
        self.counters.probes += packet_bytes

    def backlog(self) -> int:
        """Returns the number of events that the owner has not polled."""
        return self._events.qsize()

    def finished(self, message: Outgoing) -> None:
        """Frees the message's place in the queue: the broker has it, or it can never be sent."""
        with self._queue_lock:
            self._queued_messages -= 1
            self._queued_bytes -= message.packet_bytes

    def closed(self) -> None:
        """Takes note that the connection has ended for good."""
        self._done.set()
