"""State machine of one client: connects, subscribes, sends, receives, reconnects.

Everything here runs on the network thread.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.link import disconnect_reasons
from broker.link.backoff import STABLE_S, FullJitter
from broker.link.connection_failures import ConnectionFailures
from broker.link.link import LinkDown, LinkUp, Refused, publish_packet_bytes
from broker.link.network_loop import NetworkLoop, Timer
from broker.link.paho_client import HEADER_ROOM, Driver, Session
from broker.link.receive_queue import Inbox, Receiver
from broker.link.send_queue import WINDOW, Outbox, Outgoing
from broker.link.settings import BrokerSettings, Secrets
from broker.link.size_probe import LEAST_PAYLOAD, SizeProbe
from broker.link.subscriptions import Subscriptions

log = logging.getLogger(__name__)

_GOODBYE_S = 1.0


class Owner(Receiver, Protocol):
    """Link that owns a connection (called on the network thread)."""

    def finished(self, message: Outgoing) -> None:
        """Takes note that the broker has a message, or that it can never be sent."""

    def closed(self) -> None:
        """Takes note that the connection has ended for good."""


class _State(Enum):
    IDLE = auto()  # not opened, or waiting for the next attempt
    CONNECTING = auto()  # a connector thread has the client
    GREETING = auto()  # CONNECT sent
    SUBSCRIBING = auto()  # CONNACK received, SUBACKs missing
    UP = auto()
    CLOSED = auto()


class Connection:
    """Keeps one client connected and subscribed.

    Attributes:
        outbox: messages to be sent.
        inbox: messages received.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        session: Session,
        network: NetworkLoop,
        owner: Owner,
        backoff: FullJitter,
        tls: ssl.SSLContext | None,
        probe_topic: str = "",
    ) -> None:
        self._settings = settings
        self._network = network
        self._owner = owner
        self._backoff = backoff
        self._state = _State.IDLE
        self._closing = False
        self._up_since_s = 0.0
        self._session_present = False
        self._last_down: LinkDown | None = None
        self._has_told_version = False
        self._timers: dict[str, Timer] = {}
        self._secrets = Secrets()
        self._driver = Driver(settings, session, network, self, tls)
        self._subscriptions = Subscriptions(self._driver)
        self.outbox = Outbox(self._driver, owner.finished)
        self.inbox = Inbox(
            self._driver, owner, settings.max_payload_bytes, 4 * session.receive_maximum
        )
        self._probe = SizeProbe(self._driver, network, probe_topic, self._size_found, owner.probed)
        self._failures = ConnectionFailures(settings, session.client_id, self._driver, self.outbox)

    # --- commands of the owner -------------------------------------------------------------------

    @property
    def mqtt5(self) -> bool:
        """Whether the present or next connection speaks MQTT 5, not 3.1.1."""
        return self._driver.mqtt5

    def open(self, secrets: Secrets) -> None:
        """Connects, and keeps connecting."""
        self._secrets = secrets
        self._begin()

    def subscribe(self, topic_filter: str) -> None:
        """Adds a filter, now and on every connection."""
        self._subscriptions.add(topic_filter, is_connected=self._is_connected)

    def unsubscribe(self, topic_filter: str) -> None:
        """Removes a filter, now or at the next connection."""
        self._subscriptions.remove(topic_filter, is_connected=self._is_connected)

    def publish(self, message: Outgoing) -> None:
        """Sends a message after those that wait."""
        self.outbox.add(message)
        self._pump()

    def acknowledge(self, token: int) -> None:
        """Acknowledges a message of the present connection; older ones are delivered again."""
        if self._is_connected:
            self.inbox.acknowledge(token)

    def interrupt(self) -> None:
        """Loses the connection, as a cut cable would."""
        self._give_up(disconnect_reasons.lost(self._settings, 0))

    def vanish(self) -> None:
        """Ends for good without DISCONNECT."""
        self._closing = True
        self.outbox.clear()
        if self._state is not _State.CONNECTING:
            self._finish()

    def close(self, flush_s: float) -> None:
        """Sends the waiting messages within `flush_s`, then DISCONNECT, and ends for good."""
        if self._state is _State.CLOSED:
            return
        self._closing = True
        if self._state is _State.IDLE:
            self._finish()
        elif self._state is not _State.CONNECTING or self.outbox:
            self._start_timer("close", flush_s, self._say_goodbye)
            self._pump()

    # --- connecting ------------------------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        return self._state in (_State.SUBSCRIBING, _State.UP)

    def _begin(self) -> None:
        if self._closing or self._state is not _State.IDLE:
            return
        # The broker delivers unacknowledged messages again: without this check an owner that polls
        # nothing would collect one more window of them with every reconnection.
        if self.inbox.is_full:
            self._start_timer("retry", self._settings.backoff_min_s, self._begin)
            return
        self._state = _State.CONNECTING
        mqtt5 = self._failures.begin_attempt()
        if mqtt5 != self._driver.mqtt5:
            self._driver.speak(mqtt5=mqtt5)
            self.outbox.take_back()
        elif self._probe.is_running:
            self._driver.client.drop_out_messages()  # or paho would send the test message again
            self.outbox.take_back()
        self._driver.connect(self._secrets, self._opened)

    def _opened(self, error: BaseException | None) -> None:
        if self._state is _State.CLOSED:  # closed while the connector thread had the client
            self._driver.drop()
            return
        self._state = _State.GREETING
        if error is not None:
            self._down(disconnect_reasons.unreachable(self._settings, error, self._secrets.proxy))
        elif self._closing and not self.outbox:
            self._finish()
        else:
            self._start_timer("connack", self._settings.connect_timeout_s, self._on_no_connack)

    def _on_no_connack(self) -> None:
        self._give_up(disconnect_reasons.no_answer(self._settings))

    def connected(self, present: bool, code: ReasonCode, properties: Properties) -> None:
        """Handles CONNACK: takes the server's limits and subscribes."""
        if code.is_failure:  # paho closes the connection when this callback has returned
            self._failures.refused(code)
            return
        self._cancel_timers("connack")
        if not self.mqtt5 and not self._has_told_version:
            self._has_told_version = True
            log.info("broker %s: %s", self._settings.address, disconnect_reasons.MQTT311_LIMITS)
        self._session_present = present
        self._state = _State.SUBSCRIBING
        self.inbox.connected()
        self._probe.connected(session_present=present)
        self.outbox.max_payload_bytes = self._probe.limit
        self.outbox.fit(
            getattr(properties, "MaximumPacketSize", self.outbox.learned_limit),
            getattr(properties, "ReceiveMaximum", WINDOW),
        )
        if missing := disconnect_reasons.missing_feature(properties):
            down = disconnect_reasons.not_admitted(self._settings, *missing)
            self._network.soon(self._give_up, down)
            return
        self._subscriptions.send_all()
        self._up_if_subscribed()

    def subscribed(self, mid: int, codes: list[ReasonCode]) -> None:
        """Handles SUBACK; the link is up with the last one."""
        for topic_filter, code in self._subscriptions.confirmed(mid, codes):
            if self._state is _State.SUBSCRIBING and self._subscriptions.is_required(topic_filter):
                down = disconnect_reasons.not_subscribed(self._settings, topic_filter, code)
                self._network.soon(self._give_up, down)
                return
            self._tell_refused(topic_filter, code, is_subscription=True)
        self._up_if_subscribed()

    def _up_if_subscribed(self) -> None:
        if self._state is not _State.SUBSCRIBING or not self._subscriptions.are_confirmed:
            return
        self._state = _State.UP
        self._up_since_s = self._network.now_s()
        self._last_down = None
        self._tell_up(self._session_present)
        self.inbox.link_up()
        self._probe.link_up()
        self._pump()

    def _tell_up(self, session_present: bool, notice: str = "") -> None:
        room = min(
            self._settings.max_payload_bytes,
            self.outbox.max_packet_bytes - HEADER_ROOM,
            self.outbox.max_payload_bytes,
        )
        self._owner.emit(LinkUp(session_present, max(room, 0), notice))

    # --- the broker's limit ----------------------------------------------------------------------

    def _size_found(self, is_smaller: bool) -> None:
        """Goes on sending; tells the owner about a limit that is smaller than before."""
        limit = self.outbox.max_payload_bytes = self._probe.limit
        if self._probe.cannot_tell:
            log.info(
                "broker %s does not return messages on %s, and MQTT 3.1.1 does not tell of dropped"
                " ones: if large messages do not arrive, let this client read and write that topic",
                self._settings.address,
                self._probe.topic,
            )
        if is_smaller and self._state is _State.UP:
            lost = self.outbox.drop_too_large()
            notice = disconnect_reasons.size_found(
                self._settings, self._probe.refused, limit, LEAST_PAYLOAD, lost
            )
            self._tell_up(True, notice)
            self._subscriptions.send_all()  # what is retained comes again, as after a connection
        self._pump()

    def _tell_refused(self, topic: str, code: int, *, is_subscription: bool = False) -> None:
        reason = disconnect_reasons.negative(code)
        step = disconnect_reasons.next_step(code, is_subscription=is_subscription)
        self._owner.emit(Refused(topic, reason, step, is_subscription))

    # --- disconnecting ---------------------------------------------------------------------------

    def broken(self, error: Exception) -> None:
        """Drops a connection whose reading or writing raised."""
        self._give_up(disconnect_reasons.unreadable(self._settings, error))

    def disconnected(self, by_broker: bool, code: ReasonCode) -> None:
        """Reports why the connection ended and schedules the next attempt."""
        if self._state in (_State.IDLE, _State.CLOSED):  # paho may report one end twice
            return
        too_large = by_broker and code.value == disconnect_reasons.PACKET_TOO_LARGE
        if self._probe.is_sent:
            down = disconnect_reasons.test_message_too_large(self._settings, self._probe.size)
        else:
            down = self._failures.ended(
                code,
                by_broker=by_broker,
                before_connack=self._state is _State.GREETING,
                lasted_s=self._network.now_s() - self._up_since_s,
            )
            if too_large:
                self._network.soon(self._probe.was_refused, self.outbox.drop_largest())
        is_test = self._probe.is_sent
        self._probe.disconnected(too_large=too_large)
        is_twin = by_broker and code.value == disconnect_reasons.TAKEN_OVER
        self._down(down, at_cap=is_twin, at_once=is_test)

    def _give_up(self, down: LinkDown) -> None:
        """Ends a connection from our side, without DISCONNECT."""
        if self._state not in (_State.IDLE, _State.CONNECTING, _State.CLOSED):
            self._driver.drop()
            self._down(down)

    def _down(self, down: LinkDown, *, at_cap: bool = False, at_once: bool = False) -> None:
        if self._state in (_State.IDLE, _State.CLOSED):
            return
        if self._state is _State.UP and self._network.now_s() - self._up_since_s >= STABLE_S:
            self._backoff.reset()
        self._state = _State.IDLE
        self._probe.disconnected()
        self._subscriptions.disconnected()
        self._cancel_timers("connack")
        self.inbox.release()
        if self._closing:
            self._network.soon(self._finish)  # paho closes its socket after this callback
            return
        if self._failures.retry_at_once:
            log.debug("%s; trying MQTT 3.1.1", down.reason)
            self._network.soon(self._begin)  # paho closes its socket after this callback
            return
        if down != self._last_down:  # a failure that repeats itself is one event
            self._last_down = down
            self._owner.emit(down)
        wait_s = self._backoff.next_s(at_cap=at_cap or down.refused)
        wait_s = min(wait_s, self._settings.backoff_min_s) if at_once else wait_s
        log.debug("%s; next attempt in %.1f s", down.reason, wait_s)
        self._start_timer("retry", wait_s, self._begin)

    def _say_goodbye(self) -> None:
        if not self._is_connected:
            self._finish()
            return
        self._start_timer("close", _GOODBYE_S, self._finish)
        self._driver.goodbye()

    def _finish(self) -> None:
        if self._state is _State.CLOSED:
            return
        connecting = self._state is _State.CONNECTING
        self._state = _State.CLOSED
        self._cancel_timers(*self._timers)
        self._probe.disconnected()
        if not connecting:  # else a connector thread has the client: `_opened` drops it
            self._driver.drop()
        if left := len(self.outbox):
            log.warning(
                "link closed; broker %s has not acknowledged %d messages",
                self._settings.address,
                left,
                extra={"event": "unsent", "messages": left},
            )
        self._owner.closed()

    # --- messages --------------------------------------------------------------------------------

    def _pump(self) -> None:
        if self._state is not _State.UP:
            return
        if not self._probe.is_running:
            unproven = self.outbox.pump(self._probe.proven_bytes)
            if unproven:
                self._probe.prove(unproven, self._settings.max_payload_bytes)
        if self._closing and not self.outbox:
            self._say_goodbye()

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """Handles PUBACK: there is room for the next message."""
        if self._probe.acknowledged(mid, code.value):
            return
        message = self.outbox.acknowledged(mid, code.value)
        if message is not None:
            self._refused(message, code.value)
        # Not `_pump` itself: paho removes the message from its table after this callback.
        self._network.soon(self._pump)

    def _refused(self, message: Outgoing, code: int) -> None:
        size = len(message.payload)
        if code != disconnect_reasons.PACKET_TOO_LARGE or size <= LEAST_PAYLOAD:
            self._tell_refused(message.topic, code)
        else:
            self._network.soon(self._probe.was_refused, size)

    def received(self, message: paho.MQTTMessage) -> None:
        """Handles PUBLISH."""
        if message.topic == self._probe.topic:
            self._driver.client.ack(message.mid, message.qos)
            size = publish_packet_bytes(message.topic, len(message.payload), mqtt5=self.mqtt5)
            self._owner.probed(size)
            self._probe.came_back(bytes(message.payload))
        else:
            self.inbox.received(message)

    # --- timers ----------------------------------------------------------------------------------

    def _start_timer(self, name: str, delay_s: float, function: Callable[[], None]) -> None:
        self._cancel_timers(name)
        self._timers[name] = self._network.later(delay_s, function)

    def _cancel_timers(self, *names: str) -> None:
        for name in names:
            if timer := self._timers.pop(name, None):
                timer.cancel()
