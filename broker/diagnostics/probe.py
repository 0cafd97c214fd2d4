"""Probe: a client that connects once and tries actions at the broker, waiting for each answer.

It connects like all other clients (`broker.link.paho_client`), with a client id of its own. A
broker that names sessions after certificates still gives it the session of the agent or
coordinator. So the probe acknowledges only copies of retained messages and messages of its own, and
leaves queued messages to the session's owner.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.link import disconnect_reasons
from broker.link.connection_failures import VersionChoice
from broker.link.link import QOS, LinkDown
from broker.link.network_loop import NetworkLoop
from broker.link.paho_client import Driver, Session
from broker.link.send_queue import NO_PACKET_LIMIT
from broker.link.settings import BrokerSettings
from fedge.errors import LinkError

#: Session expiry after the probe: time for the owner of a shared session to reconnect.
_SESSION_S = 120
#: Time limit of the broker's answers.
_ANSWER_S = 5.0
_GOODBYE_S = 1.0
#: Time limit for the retained messages of a fleet.
_LONGEST_S = 20.0
#: A message that the probe may read comes back within so many round trips to the broker, ...
_ECHO_TRIPS = 20
#: ... but wait at least and at most so long.
_ECHO_S = (0.25, 5.0)
_RECEIVE_MAXIMUM = 100
#: Limit of the messages kept: twice the largest package.
_MAX_HEARD_BYTES = 128 << 20


@dataclass(frozen=True)
class Granted:
    """Limits in the broker's CONNACK.

    Attributes:
        mqtt5: MQTT 5; False: MQTT 3.1.1.
        max_packet_bytes: largest packet; None: no limit announced.
        receive_maximum: limit of unacknowledged messages.
        seconds: time from the first byte to CONNACK, TLS included.
    """

    mqtt5: bool
    max_packet_bytes: int | None
    receive_maximum: int
    seconds: float


class Probe:
    """One connection to the broker.

    Args:
        settings: how to reach the broker, with absolute file paths.
        client_id: client id of the probe.
        own_topic: topic of messages of its own; empty: none.

    Raises:
        ConfigError: a file that the settings name cannot be read.
    """

    def __init__(self, settings: BrokerSettings, client_id: str, own_topic: str = "") -> None:
        self._settings = settings
        self._own_topic = own_topic
        self._client_id = client_id
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        #: The session is the service's: its subscriptions must stay.
        self.is_shared = False
        self._has_connected = False
        #: Time that the last answer took.
        self.answer_s = 0.0
        #: Topic, payload and retain flag of received messages, up to a limit of bytes.
        self.heard: list[tuple[str, bytes, bool]] = []
        self._room_bytes = _MAX_HEARD_BYTES
        tls = settings.tls.context() if settings.tls is not None else None
        self._secrets = settings.secrets()
        self._connect_s = 2 * settings.connect_timeout_s + 1
        session = Session(client_id, None, _SESSION_S, _RECEIVE_MAXIMUM)
        self._network = NetworkLoop("fedge-doctor")
        self._driver = Driver(settings, session, self._network, self, tls)
        self._down: LinkDown | None = None
        self._is_open = False  # TCP and TLS are done
        self._is_up = False

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *error: object) -> None:
        if self._down is None:
            self._network.call(self._driver.goodbye)
            self._wait_for("down", _GOODBYE_S)
        self._network.call(self._driver.drop)
        self._network.close()

    def connect(self) -> Granted:
        """Connects and logs in, with MQTT 3.1.1 if the settings allow it and 5 is unknown.

        May be called again after the connection ended.

        Raises:
            LinkError: refused, or no answer.
        """
        began_s = time.monotonic()
        choice = VersionChoice(self._settings.protocol)
        while True:
            mqtt5 = choice.take()
            self._down, self._is_open, self._is_up = None, False, False
            self._network.call(self._begin, mqtt5)
            code, properties = self._wait_for("up", self._connect_s) or (None, None)
            if code is not None and not code.is_failure:
                break
            if code is not None:
                down = disconnect_reasons.not_admitted(self._settings, code.value, code.getName())
                is_unknown = code.value == disconnect_reasons.UNKNOWN_VERSION
                again = is_unknown and choice.unknown(mqtt5=mqtt5)
                self._wait_for("down", _GOODBYE_S)
            else:
                hung_up = self._is_open and self._down is not None and not self._down.refused
                down = self._down or disconnect_reasons.no_answer(self._settings)
                again = hung_up and choice.silent(mqtt5=mqtt5)
            if not again:
                self._down = down
                raise LinkError(down.reason)
        if missing := disconnect_reasons.missing_feature(properties):
            raise LinkError(disconnect_reasons.not_admitted(self._settings, *missing).reason)
        return Granted(
            mqtt5,
            getattr(properties, "MaximumPacketSize", None),
            getattr(properties, "ReceiveMaximum", 65_535),
            time.monotonic() - began_s,
        )

    @property
    def mqtt5(self) -> bool:
        """Whether the broker reports refused messages (MQTT 3.1.1 does not)."""
        return self._driver.mqtt5

    @property
    def patience_s(self) -> float:
        """Time to wait for a message that may never come."""
        low, high = _ECHO_S
        return min(high, max(low, _ECHO_TRIPS * self.answer_s))

    def publish(self, topic: str, payload: bytes = b"", timeout_s: float = _ANSWER_S) -> int:
        """Publishes, not retained; returns the broker's reason code, below 0x80 for success.

        Raises:
            LinkError: the connection ended.
        """
        question = lambda client: client.publish(topic, payload, QOS)  # noqa: E731
        return int(self._ask("published", question, timeout_s).value)

    def subscribe(self, filters: Sequence[str]) -> list[int]:
        """Subscribes; returns the broker's reason codes, below 0x80 for success.

        Raises:
            LinkError: the connection ended.
        """
        names = [(name, QOS) for name in filters]
        return [int(code.value) for code in self._ask("subscribed", lambda c: c.subscribe(names))]

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Removes filters from the session."""
        self._network.call(lambda: self._driver.client.unsubscribe(list(filters)))

    def listen(self, found: Callable[[], bool], timeout_s: float) -> bool:
        """Receives messages into `heard` until `found()`, for at most `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while not found() and (left_s := end_s - time.monotonic()) > 0 and self._down is None:
            self._wait_for("message", left_s)
        return found()

    def receive_all(self) -> None:
        """Receives messages into `heard` until no more come."""
        end_s = time.monotonic() + _LONGEST_S
        while self._wait_for("message", self.patience_s) and time.monotonic() < end_s:
            continue

    def _ask(
        self, answer: str, question: Callable[[paho.Client], Any], timeout_s: float = _ANSWER_S
    ) -> Any:
        began_s = time.monotonic()
        found = None
        if self._down is None:
            self._network.call(lambda: question(self._driver.client))
            found = self._wait_for(answer, timeout_s)
        self.answer_s = time.monotonic() - began_s
        if found is None:
            down = self._down or LinkDown(
                f"broker {self._settings.address} did not answer within {timeout_s:g} s"
            )
            raise LinkError(down.reason)
        return found

    def _wait_for(self, wanted: str, timeout_s: float) -> Any:
        """Returns the next answer of a kind; None: the connection ended, or no answer in time."""
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            try:
                kind, answer = self._answers.get(timeout=left_s)
            except queue.Empty:
                return None
            if kind == "message" and self._room_bytes > 0:
                self._room_bytes -= len(answer[1])
                self.heard.append(answer)
            if kind == "down":
                self._down = self._down or answer
            if kind == wanted:
                return answer
            if kind == "down":
                return None
        return None

    # --- on the network thread -------------------------------------------------------------------

    def _begin(self, mqtt5: bool) -> None:
        self._driver.drop()
        self._driver.client.drop_out_messages()
        self._driver.speak(mqtt5=mqtt5)
        self._driver.connect(self._secrets, self._opened)

    def _opened(self, error: BaseException | None) -> None:
        if error is None:
            self._is_open = True
            return
        down = disconnect_reasons.unreachable(self._settings, error, self._secrets.proxy)
        self._answers.put(("down", down))

    def connected(self, present: bool, code: ReasonCode, properties: Properties) -> None:
        """Handles CONNACK."""
        self._is_up = not code.is_failure
        if self._is_up and not self._has_connected:
            self._has_connected, self.is_shared = True, present
        self._answers.put(("up", (code, properties)))

    def disconnected(self, by_broker: bool, code: ReasonCode) -> None:
        """Handles the end of the connection."""
        if by_broker:
            down = disconnect_reasons.disconnected_by_broker(
                self._settings, self._client_id, code.value, code.getName()
            )
        elif self._is_up:
            down = disconnect_reasons.lost(self._settings, code.value)
        elif self._driver.farewell:
            down = disconnect_reasons.websocket_closed(self._settings, self._driver.farewell)
        else:
            down = disconnect_reasons.no_answer(self._settings, self._driver.complaint)
        self._answers.put(("down", down))

    def subscribed(self, mid: int, codes: list[ReasonCode]) -> None:
        """Handles SUBACK."""
        self._answers.put(("subscribed", codes))

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """Handles PUBACK."""
        self._answers.put(("published", code))

    def received(self, message: paho.MQTTMessage) -> None:
        """Handles PUBLISH; acknowledges only some messages, see the module."""
        if message.retain or message.topic == self._own_topic:  # the broker keeps what is retained
            self._driver.client.ack(message.mid, QOS)
        self._answers.put(("message", (message.topic, bytes(message.payload), message.retain)))

    def broken(self, error: Exception) -> None:
        """Handles an exception while reading or writing."""
        self._answers.put(("down", disconnect_reasons.unreadable(self._settings, error)))


def packet_limit(granted: Granted) -> int:
    """Returns the broker's limit of packet bytes, or that of the protocol."""
    return granted.max_packet_bytes or NO_PACKET_LIMIT
