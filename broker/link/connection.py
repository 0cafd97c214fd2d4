"""One client's life on the network thread: connect, subscribe, send, take, lose, try again.

Everything here runs on the network thread.
"""

from __future__ import annotations

import asyncio
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
from broker.link.link import QOS, LinkDown, LinkEvent, LinkUp, Received, publish_packet_bytes
from broker.link.network_loop import NetworkLoop
from broker.link.paho_client import HEADER_ROOM, Driver, Session
from broker.link.protocol_version import VersionChoice
from broker.link.send_queue import WINDOW, Outbox, Outgoing
from broker.link.settings import BrokerSettings, Secrets

log = logging.getLogger(__name__)

_FILTERS_PER_PACKET = 50
#: So many connections in a row cut within seconds look like two clients with one id that throw
#: each other out. Mosquitto 2.0.11 and the embedded broker hang up on the loser without a word.
_SUSPICIOUS = 3
_GOODBYE_S = 1.0


class Owner(Protocol):
    """What a connection tells the link that owns it (called on the network thread)."""

    def emit(self, event: LinkEvent) -> None:
        """An event for the owner's thread."""

    def backlog(self) -> int:
        """Events the owner has not taken yet."""

    def arrived(self, packet_bytes: int) -> None:
        """A message came over the link."""

    def finished(self, message: Outgoing) -> None:
        """The broker has it, or it can never be sent."""

    def closed(self) -> None:
        """Nothing more will come."""


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
        outbox: the messages to be sent.
        dropped: messages that were refused as too large, or had no room.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        session: Session,
        network: NetworkLoop,
        owner: Owner,
        backoff: FullJitter,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.dropped = 0
        self._settings = settings
        self._session = session
        self._network = network
        self._owner = owner
        self._backoff = backoff
        self._state = _State.IDLE
        self._closing = False
        self._most_backlog = 4 * session.receive_maximum
        self._subscriptions: dict[str, None] = {}  # a set that keeps its order
        self._to_unsubscribe: dict[str, None] = {}
        self._subacks: dict[int, list[str]] = {}
        self._held: list[Received] = []
        self._epoch = 0
        self._up_since_s = 0.0
        self._short_lives = 0
        self._session_present = False
        self._verdict: LinkDown | None = None  # why the broker will hang up now
        self._last_down: LinkDown | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._secrets = Secrets()
        self._versions = VersionChoice(settings.protocol)
        self._again = False  # with the other version, as soon as paho has hung up
        self._unacknowledged = 0  # that came on this connection
        self._driver = Driver(settings, session, network, self, tls)
        self.outbox = Outbox(self._driver, owner.finished)

    # --- what the owner asks for -----------------------------------------------------------------

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
        self._to_unsubscribe.pop(topic_filter, None)
        self._subscriptions[topic_filter] = None
        if self._connected:
            self._send_subscribe([topic_filter])

    def unsubscribe(self, topic_filter: str) -> None:
        """Removes a filter; while away, from the stored session at the next connection."""
        self._subscriptions.pop(topic_filter, None)
        if self._connected:
            self._driver.client.unsubscribe(topic_filter)
        else:
            self._to_unsubscribe[topic_filter] = None

    def publish(self, message: Outgoing) -> None:
        """Sends it when its turn comes."""
        self.outbox.add(message)
        self._pump()

    def acknowledge(self, token: int) -> None:
        """PUBACKs a message, if it came on the present connection (else it comes again)."""
        if self._connected and token >> 16 == self._epoch:
            self._driver.client.ack(token & 0xFFFF, QOS)
            self._unacknowledged -= 1
            if self._unacknowledged < self._most_backlog:
                self._driver.go_on()

    def interrupt(self) -> None:
        """Loses the connection, as a cut cable would."""
        if self._state not in (_State.IDLE, _State.CONNECTING, _State.CLOSED):
            self._give_up(disconnect_reasons.lost(self._settings, 0))

    def vanish(self) -> None:
        """Ends for good without a goodbye."""
        self._closing = True
        self.outbox.clear()
        if self._state is not _State.CONNECTING:
            self._finish()

    def close(self, flush_s: float) -> None:
        """Sends what waits within `flush_s`, says goodbye, ends."""
        if self._state is _State.CLOSED:
            return
        self._closing = True
        if self._state is _State.IDLE:
            self._finish()
        elif self._state is not _State.CONNECTING or self.outbox:
            self._timer("close", flush_s, self._say_goodbye)
            self._pump()

    # --- connecting ------------------------------------------------------------------------------

    @property
    def _connected(self) -> bool:
        return self._state in (_State.SUBSCRIBING, _State.UP)

    def _begin(self) -> None:
        if self._closing or self._state is not _State.IDLE:
            return
        # What came on the last connection and was not acknowledged comes again: without this an
        # owner that takes nothing would gather a windowful per reconnection, without end.
        if self._owner.backlog() > self._most_backlog:
            self._timer("retry", self._settings.backoff_min_s, self._begin)
            return
        self._verdict = None
        self._again = False
        self._unacknowledged = 0
        self._state = _State.CONNECTING
        mqtt5 = self._versions.take()
        if mqtt5 != self._driver.mqtt5:
            self._driver.speak(mqtt5=mqtt5)
            self.outbox.take_back()
        self._driver.connect(self._secrets, self._opened)

    def _opened(self, error: BaseException | None) -> None:
        if self._state is _State.CLOSED:  # meanwhile: its time was over
            self._driver.drop()
            return
        self._state = _State.GREETING
        if error is not None:
            self._down(disconnect_reasons.unreachable(self._settings, error, self._secrets.proxy))
        elif self._closing and not self.outbox:
            self._finish()
        else:
            self._timer("connack", self._settings.connect_timeout_s, self._on_silence)

    def _on_silence(self) -> None:
        self._give_up(disconnect_reasons.no_answer(self._settings))

    def connected(self, present: bool, code: ReasonCode, properties: Properties) -> None:
        """CONNACK: the server's limits are known; subscribes."""
        if code.is_failure:  # paho hangs up when this callback has returned
            self._verdict = disconnect_reasons.not_admitted(
                self._settings, code.value, code.getName()
            )
            if code.value == disconnect_reasons.UNKNOWN_VERSION:
                self._again = self._versions.unknown(mqtt5=self.mqtt5)
            return
        self._cancel("connack")
        if not self.mqtt5:
            log.info("broker %s: %s", self._settings.address, disconnect_reasons.OLDER)
        self._epoch = (self._epoch + 1) & 0xFFFFFFFF
        self._session_present = present
        self._state = _State.SUBSCRIBING
        self.outbox.fit(
            getattr(properties, "MaximumPacketSize", self.outbox.learned_limit),
            getattr(properties, "ReceiveMaximum", WINDOW),
        )
        if lacking := disconnect_reasons.lacking(properties):
            down = disconnect_reasons.not_admitted(self._settings, *lacking)
            self._network.soon(self._give_up, down)
            return
        if self._to_unsubscribe:
            self._driver.client.unsubscribe(list(self._to_unsubscribe))
            self._to_unsubscribe.clear()
        filters = list(self._subscriptions)
        for start in range(0, len(filters), _FILTERS_PER_PACKET):
            self._send_subscribe(filters[start : start + _FILTERS_PER_PACKET])
        self._up_if_subscribed()

    def _send_subscribe(self, filters: list[str]) -> None:
        _, mid = self._driver.client.subscribe([(name, QOS) for name in filters])
        if mid is not None:
            self._subacks[mid] = filters

    def subscribed(self, mid: int, codes: list[ReasonCode]) -> None:
        """SUBACK: the link is up with the last of them."""
        for topic_filter, code in zip(self._subacks.pop(mid, []), codes, strict=False):
            if code.is_failure and topic_filter in self._subscriptions:
                down = disconnect_reasons.not_subscribed(
                    self._settings, topic_filter, code.value, code.getName()
                )
                self._network.soon(self._give_up, down)
                return
        self._up_if_subscribed()

    def _up_if_subscribed(self) -> None:
        if self._state is not _State.SUBSCRIBING or self._subacks:
            return
        self._state = _State.UP
        self._up_since_s = self._network.now_s()
        self._last_down = None
        room = min(self._settings.max_payload_bytes, self.outbox.max_packet_bytes - HEADER_ROOM)
        self._owner.emit(LinkUp(self._session_present, max(room, 0)))
        self._release_held()
        self._pump()

    def _release_held(self) -> None:
        for received in self._held:
            self._owner.emit(received)
        self._held.clear()

    def broken(self) -> None:
        """An exception while reading or writing: starts over with a new connection."""
        self._give_up(disconnect_reasons.lost(self._settings, 0))

    # --- losing the connection -------------------------------------------------------------------

    def disconnected(self, by_broker: bool, code: ReasonCode) -> None:
        """The connection ended: says why, and tries again later."""
        if self._verdict is not None:
            down = self._verdict
        elif (
            self._state is _State.GREETING
            and not self.mqtt5
            and code.value == disconnect_reasons.PROTOCOL
        ):
            # In 3.1.1 paho keeps to itself that the broker does not know the version.
            self._versions.unknown(mqtt5=False)
            unknown = disconnect_reasons.UNKNOWN_VERSION, code.getName()
            down = self._verdict = disconnect_reasons.not_admitted(self._settings, *unknown)
        elif by_broker:
            down = disconnect_reasons.hung_up(
                self._settings, self._session.client_id, code.value, code.getName()
            )
        elif self._state is _State.GREETING:
            down = disconnect_reasons.no_answer(self._settings, self._driver.complaint)
            self._again = not down.refused and self._versions.silent(mqtt5=self.mqtt5)
        elif self._driver.farewell:
            down = disconnect_reasons.said_goodbye(self._settings, self._driver.farewell)
        else:
            down = self._without_a_word(code.value)
        self._down(down, at_cap=by_broker and code.value == disconnect_reasons.TAKEN_OVER)

    def _without_a_word(self, code: int) -> LinkDown:
        lived_s = self._network.now_s() - self._up_since_s
        self._short_lives = self._short_lives + 1 if lived_s < STABLE_S else 0
        if not self.mqtt5 and (size := self.outbox.suspect()):
            return disconnect_reasons.cannot_bear(self._settings, size)
        if self._short_lives < _SUSPICIOUS:
            return disconnect_reasons.lost(self._settings, code)
        return disconnect_reasons.lost_again(
            self._settings, self._session.client_id, self._short_lives
        )

    def _give_up(self, down: LinkDown) -> None:
        """Ends a connection from our side, without a goodbye."""
        if self._state not in (_State.IDLE, _State.CONNECTING, _State.CLOSED):
            self._driver.drop()
            self._down(down)

    def _down(self, down: LinkDown, *, at_cap: bool = False) -> None:
        if self._state in (_State.IDLE, _State.CLOSED):
            return
        if self._state is _State.UP and self._network.now_s() - self._up_since_s >= STABLE_S:
            self._backoff.reset()
        self._state = _State.IDLE
        self._subacks.clear()
        self._cancel("connack")
        self._release_held()
        if self._closing:
            self._network.soon(self._finish)  # paho closes its socket after this callback
            return
        if self._again:
            log.debug("%s; trying MQTT 3.1.1", down.reason)
            self._network.soon(self._begin)  # paho closes its socket after this callback
            return
        if down != self._last_down:  # the same failure again and again is one event
            self._last_down = down
            self._owner.emit(down)
        wait_s = self._backoff.next_s(at_cap=at_cap or down.refused)
        log.debug("%s; next attempt in %.1f s", down.reason, wait_s)
        self._timer("retry", wait_s, self._begin)

    def _say_goodbye(self) -> None:
        if not self._connected:
            self._finish()
            return
        self._timer("close", _GOODBYE_S, self._finish)
        self._driver.goodbye()

    def _finish(self) -> None:
        if self._state is _State.CLOSED:
            return
        connecting = self._state is _State.CONNECTING
        self._state = _State.CLOSED
        self._cancel(*self._timers)
        if not connecting:  # else a connector thread has the client: `_opened` drops it
            self._driver.drop()
        if left := len(self.outbox):
            log.warning(
                "closed with %d messages that broker %s has not acknowledged",
                left,
                self._settings.address,
                extra={"event": "unsent", "messages": left},
            )
        self._owner.closed()

    # --- messages --------------------------------------------------------------------------------

    def _pump(self) -> None:
        if self._state is not _State.UP:
            return
        self.outbox.pump()
        if self._closing and not self.outbox:
            self._say_goodbye()

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """PUBACK: there is room for the next message."""
        self.outbox.acknowledged(mid, code)
        # Not `_pump` itself: paho removes the message from its table after this callback.
        self._network.soon(self._pump)

    def received(self, message: paho.MQTTMessage) -> None:
        """PUBLISH: hands it to the owner."""
        expiry_s = getattr(message.properties, "MessageExpiryInterval", None)
        size = publish_packet_bytes(message.topic, len(message.payload), expiry_s, mqtt5=self.mqtt5)
        self._owner.arrived(size)
        if len(message.payload) > self._settings.max_payload_bytes:
            # The broker was told our Maximum Packet Size and did not care.
            self._refuse(message, f"max_payload_bytes is {self._settings.max_payload_bytes}")
            return
        if message.qos == 0 and self._owner.backlog() > self._most_backlog:
            # Foreign: everything of ours is QoS 1, which the broker holds back for a slow owner.
            self._refuse(message, "the owner is too slow")
            return
        token = self._epoch << 16 | message.mid if message.qos else 0
        self._unacknowledged += message.qos
        if self._unacknowledged >= self._most_backlog:
            # Only a broker that knows no Receive Maximum sends so many ahead.
            self._driver.hold()
        received = Received(message.topic, bytes(message.payload), message.retain, token)
        if self._state is _State.UP:
            self._owner.emit(received)
        else:
            # A resumed session delivers before the SUBACK: LinkUp comes first all the same.
            self._held.append(received)

    def _refuse(self, message: paho.MQTTMessage, why: str) -> None:
        self.dropped += 1
        log.error(
            "message of %d bytes on %s refused: %s",
            len(message.payload),
            message.topic,
            why,
            extra={"event": "message_refused", "topic": message.topic},
        )
        if message.qos:
            self._driver.client.ack(message.mid, QOS)

    # --- timers ----------------------------------------------------------------------------------

    def _timer(self, name: str, delay_s: float, function: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._network.later(delay_s, function)

    def _cancel(self, *names: str) -> None:
        for name in names:
            if timer := self._timers.pop(name, None):
                timer.cancel()
