"""Outgoing messages: a queue, and a window of messages in flight within the server's limits.

paho gets no more messages than the window. After a reconnection paho sends all its messages at
once, ignoring the server's Receive Maximum and Maximum Packet Size; the server then disconnects the
client, which reconnects and does the same again.

Everything here runs on the network thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from broker.link.link import QOS
from broker.link.paho_client import Driver, make_properties

log = logging.getLogger(__name__)

#: MQTT 5 §3.2.2.3.6: limit of the protocol, for servers that announce none.
NO_PACKET_LIMIT = 268_435_455
#: Most unacknowledged publications; the server's Receive Maximum may lower it.
WINDOW = 64
#: A packet is given up after so many connections in a row that ended with it in flight.
_SUSPICIONS = 3
#: Packets up to this size are never suspected.
_ALWAYS_ACCEPTED_BYTES = 4096


@dataclass(frozen=True)
class Outgoing:
    """Message that waits to be sent or acknowledged."""

    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None
    packet_bytes: int


class Outbox:
    """Sends messages in order, within the server's limits.

    Attributes:
        max_packet_bytes: the server's Maximum Packet Size, once known.
        learned_limit: largest packet for a server that announces no limit, learned from failures.

    Args:
        driver: sends the packets.
        finished: called when the broker has a message, or the message can never be sent.
    """

    def __init__(self, driver: Driver, finished: Callable[[Outgoing], None]) -> None:
        self.max_packet_bytes = NO_PACKET_LIMIT
        self.learned_limit = NO_PACKET_LIMIT
        self._driver = driver
        self._finished = finished
        self._suspect: Outgoing | None = None
        self._suspicions = 0
        self._window = WINDOW
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def add(self, message: Outgoing) -> None:
        """Queues a message after those that wait."""
        self._waiting.append(message)

    def clear(self) -> None:
        """Forgets all messages."""
        self._waiting.clear()
        self._in_flight.clear()

    def fit(self, max_packet_bytes: int, receive_maximum: int) -> None:
        """Takes the server's limits; takes back from paho what it must not send again."""
        self.max_packet_bytes = max_packet_bytes
        self._window = min(WINDOW, receive_maximum)
        sizes = [message.packet_bytes for message in self._in_flight.values()]
        if len(sizes) > self._window or max(sizes, default=0) > max_packet_bytes:
            self._driver.client.drop_out_messages()
            self.take_back()

    def take_back(self) -> None:
        """Queues the messages in flight again, after paho forgot them."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()

    def suspect(self) -> int:
        """Notes a lost connection; returns the size of the packet that the broker rejects, or 0.

        MQTT 3.1.1 has no Maximum Packet Size: a broker disconnects on a packet that is too large,
        gets it again and disconnects again. The largest packet in flight is suspected; the third
        time half its size becomes the limit, and the packet is dropped.
        """
        largest = max(self._in_flight.values(), key=lambda m: m.packet_bytes, default=None)
        if largest is None or largest.packet_bytes <= _ALWAYS_ACCEPTED_BYTES:
            self._suspect, self._suspicions = None, 0
            return 0
        self._suspicions = self._suspicions + 1 if largest is self._suspect else 1
        self._suspect = largest
        if self._suspicions < _SUSPICIONS:
            return 0
        self.learned_limit = largest.packet_bytes // 2
        self._suspect, self._suspicions = None, 0
        return largest.packet_bytes

    def pump(self) -> None:
        """Sends as many waiting messages as the window allows."""
        while self._waiting and len(self._in_flight) < self._window:
            message = self._waiting.popleft()
            if message.packet_bytes > self.max_packet_bytes:
                # Queued before the limit was known. The server would disconnect us for it.
                self._drop(message, f"the server's limit is {self.max_packet_bytes} bytes")
            else:
                self._send(message)

    def _send(self, message: Outgoing) -> None:
        properties = None
        if message.expiry_s is not None and self._driver.mqtt5:
            properties = make_properties(
                PacketTypes.PUBLISH, MessageExpiryInterval=message.expiry_s
            )
        sent = self._driver.client.publish(
            message.topic, message.payload, QOS, message.retain, properties
        )
        if sent.rc == paho.MQTT_ERR_QUEUE_SIZE:
            # Packet ids wrapped around, and the message of this id is still unacknowledged. The
            # next attempt takes the next id.
            self._waiting.appendleft(message)
        else:
            self._in_flight[sent.mid] = message

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """Takes a PUBACK: the broker has the message, or refused it."""
        message = self._in_flight.pop(mid, None)
        if message is not None and code.is_failure:
            self._drop(message, f"the broker refused it: {code.getName().lower()}")
        elif message is not None:
            self._finished(message)

    def _drop(self, message: Outgoing, why: str) -> None:
        log.error(
            "message of %d bytes on %s dropped: %s",
            message.packet_bytes,
            message.topic,
            why,
            extra={"event": "message_dropped", "topic": message.topic},
        )
        self._finished(message)
