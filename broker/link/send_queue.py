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
        max_payload_bytes: largest payload that the server takes, where it was found out.
        learned_limit: largest packet for a server that announces no limit, learned from failures.

    Args:
        driver: sends the packets.
        finished: called when the broker has a message, or the message can never be sent.
    """

    def __init__(self, driver: Driver, finished: Callable[[Outgoing], None]) -> None:
        self.max_packet_bytes = NO_PACKET_LIMIT
        self.max_payload_bytes = NO_PACKET_LIMIT
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

        A broker that announces no Maximum Packet Size disconnects on a packet that is too large,
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

    def drop_largest(self) -> int:
        """Gives up the largest message in flight; returns the size of its payload, or 0.

        The server ended the connection because a packet was too large.
        """
        if not self._in_flight:
            return 0
        self._driver.client.drop_out_messages()
        mid = max(self._in_flight, key=lambda m: self._in_flight[m].packet_bytes)
        message = self._in_flight.pop(mid)
        self.take_back()
        self._finished(message)
        return len(message.payload)

    def drop_too_large(self) -> int:
        """Drops the waiting messages that the server does not take; returns their number."""
        kept: deque[Outgoing] = deque()
        dropped = 0
        for message in self._waiting:
            if len(message.payload) <= self.max_payload_bytes:
                kept.append(message)
            else:
                dropped += 1
                self._finished(message)
        self._waiting = kept
        return dropped

    def pump(self, proven_bytes: int = NO_PACKET_LIMIT) -> int:
        """Sends as many waiting messages as the window allows.

        Args:
            proven_bytes: payloads up to this size pass.

        Returns:
            0, or the largest payload that waits and must be proven to pass first.
        """
        while self._waiting and len(self._in_flight) < self._window:
            if proven_bytes < len(self._waiting[0].payload) <= self.max_payload_bytes:
                return max(len(message.payload) for message in self._waiting)
            message = self._waiting.popleft()
            if message.packet_bytes > self.max_packet_bytes:
                # Queued before the limit was known. The server would disconnect us for it.
                self._drop(message, f"the server's limit is {self.max_packet_bytes} bytes")
            elif len(message.payload) > self.max_payload_bytes:
                self._drop(message, f"the server takes payloads of {self.max_payload_bytes} bytes")
            else:
                self._send(message)
        return 0

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

    def acknowledged(self, mid: int, code: int) -> Outgoing | None:
        """Takes a PUBACK; returns the message that the server refused, or None."""
        message = self._in_flight.pop(mid, None)
        if message is None:
            return None
        self._finished(message)
        return message if code >= 0x80 else None

    def _drop(self, message: Outgoing, why: str) -> None:
        log.error(
            "message of %d bytes on %s dropped: %s",
            message.packet_bytes,
            message.topic,
            why,
            extra={"event": "message_dropped", "topic": message.topic},
        )
        self._finished(message)
