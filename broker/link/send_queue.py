"""Messages on their way out: what waits, what paho has, and what the server lets us have in flight.

paho gets a windowful and no more. After a reconnection it sends all it has at once, whatever
Receive Maximum and Maximum Packet Size the server announced; a client that has too much in flight,
or one message too large, is thrown out, comes back and does it again.

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

#: MQTT 5 §3.2.2.3.6: without the property there is no limit beyond the protocol's.
NO_PACKET_LIMIT = 268_435_455
#: Our own limit of unacknowledged publications; the server's Receive Maximum may lower it.
WINDOW = 64
#: So many connections in a row that end with the same packet; one that no broker finds too large.
_SUSPICIONS = 3
_ALWAYS_TAKEN = 4096


@dataclass(frozen=True)
class Outgoing:
    """A message that waits to be sent or acknowledged."""

    topic: str
    payload: bytes
    retain: bool
    expiry_s: int | None
    packet_bytes: int


class Outbox:
    """Sends messages in order, within the server's limits.

    Attributes:
        max_packet_bytes: the server's Maximum Packet Size, once known.
        dropped: messages given up: too large for the server, or refused by it.
        learned_limit: the largest packet of a server that does not say what it takes.

    Args:
        driver: whose client sends.
        finished: called when the broker has a message, or it can never be sent.
    """

    def __init__(self, driver: Driver, finished: Callable[[Outgoing], None]) -> None:
        self.max_packet_bytes = NO_PACKET_LIMIT
        self.dropped = 0
        self._driver = driver
        self._finished = finished
        self.learned_limit = NO_PACKET_LIMIT
        self._suspect: Outgoing | None = None
        self._suspicions = 0
        self._window = WINDOW
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def add(self, message: Outgoing) -> None:
        """The last of those that wait."""
        self._waiting.append(message)

    def clear(self) -> None:
        """Forgets everything."""
        self._waiting.clear()
        self._in_flight.clear()

    def fit(self, max_packet_bytes: int, receive_maximum: int) -> None:
        """A server said what it takes: takes back from paho what it must not resend."""
        self.max_packet_bytes = max_packet_bytes
        self._window = min(WINDOW, receive_maximum)
        sizes = [message.packet_bytes for message in self._in_flight.values()]
        if len(sizes) > self._window or max(sizes, default=0) > max_packet_bytes:
            self._driver.client.drop_out_messages()
            self.take_back()

    def take_back(self) -> None:
        """What paho had waits again: it has forgotten it."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()

    def suspect(self) -> int:
        """Notes that the broker hung up on us; bytes of the packet that it cannot bear, or 0.

        MQTT 3.1.1 has no Maximum Packet Size: a broker hangs up on a packet that is too large,
        gets it again and hangs up again. The largest of those in flight is suspected; the third
        time it is given up, and half its size is the limit from then on.
        """
        largest = max(self._in_flight.values(), key=lambda m: m.packet_bytes, default=None)
        if largest is None or largest.packet_bytes <= _ALWAYS_TAKEN:
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
        """Sends what the window allows."""
        while self._waiting and len(self._in_flight) < self._window:
            message = self._waiting.popleft()
            if message.packet_bytes > self.max_packet_bytes:
                # It was taken before the limit was known. Sending it would get us thrown out.
                self._drop(message, f"the server's limit is {self.max_packet_bytes}")
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
            # Once round the 65,535 packet ids: this one's message is still unacknowledged. The
            # next try takes the next id.
            self._waiting.appendleft(message)
        else:
            self._in_flight[sent.mid] = message

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """The broker has the message, or will not have it."""
        message = self._in_flight.pop(mid, None)
        if message is not None and code.is_failure:
            self._drop(message, f"the broker refused it: {code.getName().lower()}")
        elif message is not None:
            self._finished(message)

    def _drop(self, message: Outgoing, why: str) -> None:
        self.dropped += 1
        log.error(
            "message of %d bytes on %s is given up: %s",
            message.packet_bytes,
            message.topic,
            why,
            extra={"event": "message_dropped", "topic": message.topic},
        )
        self._finished(message)
