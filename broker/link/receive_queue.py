"""Incoming messages: passed to the owner, and held back while the owner has enough.

Everything here runs on the network thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Protocol

from paho.mqtt import client as paho

from broker.link.link import QOS, LinkEvent, Received, publish_packet_bytes
from broker.link.paho_client import Driver
from fedge.limits import is_power_of_two

log = logging.getLogger(__name__)


class Receiver(Protocol):
    """Owner of a connection, as incoming messages see it (called on the network thread)."""

    def emit(self, event: LinkEvent) -> None:
        """Queues an event for the owner's thread."""

    def backlog(self) -> int:
        """Returns the number of events that the owner has not polled."""

    def arrived(self, packet_bytes: int) -> None:
        """Counts the bytes of a message."""

    def probed(self, packet_bytes: int) -> None:
        """Counts the bytes of a test message."""


class Inbox:
    """Receives messages and acknowledges them when the owner says so.

    Args:
        driver: serves the connection.
        receiver: takes the messages.
        max_payload_bytes: larger messages are refused.
        max_backlog: events that may wait for the owner.
    """

    def __init__(
        self, driver: Driver, receiver: Receiver, max_payload_bytes: int, max_backlog: int
    ) -> None:
        self._driver = driver
        self._receiver = receiver
        self._max_payload_bytes = max_payload_bytes
        self._max_backlog = max_backlog
        self._early: list[Received] = []  # received before the link was up
        self._is_up = False
        self._connection = 0  # counts connections, so that old acknowledgements are recognized
        self._unacknowledged = 0  # messages of the present connection
        self._refusals: Counter[str] = Counter()  # since the start, by reason

    @property
    def is_full(self) -> bool:
        """Whether the owner is so far behind that no new connection should be made."""
        return self._receiver.backlog() > self._max_backlog

    def connected(self) -> None:
        """Starts a new connection: messages wait until `link_up`."""
        self._connection = (self._connection + 1) & 0xFFFFFFFF
        self._unacknowledged = 0
        self._is_up = False

    def link_up(self) -> None:
        """Passes messages on from now on, those that came early first."""
        self._is_up = True
        self.release()

    def release(self) -> None:
        """Passes the early messages on."""
        for received in self._early:
            self._receiver.emit(received)
        self._early.clear()

    def acknowledge(self, token: int) -> None:
        """Sends a PUBACK, unless the message came on an earlier connection."""
        if token >> 16 != self._connection:
            return
        self._driver.client.ack(token & 0xFFFF, QOS)
        self._unacknowledged -= 1
        if self._unacknowledged < self._max_backlog:
            self._driver.resume_reading()

    def received(self, message: paho.MQTTMessage) -> None:
        """Passes a message on, or refuses it when it is too large or the owner too slow."""
        expiry_s = getattr(message.properties, "MessageExpiryInterval", None)
        packet_bytes = publish_packet_bytes(
            message.topic, len(message.payload), expiry_s, mqtt5=self._driver.mqtt5
        )
        self._receiver.arrived(packet_bytes)
        if len(message.payload) > self._max_payload_bytes:
            # The broker was told our Maximum Packet Size and ignored it.
            self._refuse(message, f"max_payload_bytes is {self._max_payload_bytes}")
            return
        if message.qos == 0 and self.is_full:
            # Foreign: all our messages are QoS 1, which the broker holds back for a slow owner.
            self._refuse(message, f"more than {self._max_backlog} events wait to be polled")
            return
        token = self._connection << 16 | message.mid if message.qos else 0
        self._unacknowledged += message.qos
        if self._unacknowledged >= self._max_backlog:
            # Only a broker that ignores Receive Maximum sends so many ahead.
            self._driver.pause_reading()
        received = Received(message.topic, bytes(message.payload), message.retain, token)
        if self._is_up:
            self._receiver.emit(received)
        else:
            # A resumed session delivers before the SUBACK; LinkUp must still come first.
            self._early.append(received)

    def _refuse(self, message: paho.MQTTMessage, why: str) -> None:
        self._refusals[why] += 1
        if is_power_of_two(count := self._refusals[why]):  # this thread has no time for a flood
            log.error(
                "message of %d bytes on %s refused: %s%s",
                len(message.payload),
                message.topic[:200],
                why,
                f" ({count} such messages so far)" if count > 1 else "",
                extra={"event": "message_refused", "topic": message.topic},
            )
        if message.qos:
            self._driver.client.ack(message.mid, QOS)
