"""A client that connects once and asks the broker what it may do; everything waits for an answer.

It goes the way of all other clients (`broker.link.paho_client`), under a client id of its own. A
broker that names sessions after certificates gives it the session of the agent or coordinator all
the same: so it acknowledges copies of retained messages only, and leaves what is queued for the
session's owner.
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

#: After us the owner has so long to come for its session, and nobody misses ours.
_SESSION_S = 120
#: The broker answers within so long, or not at all.
_ANSWER_S = 5.0
_GOODBYE_S = 1.0
#: A fleet's statuses are all here by then, or are too many to wait for.
_LONGEST_S = 20.0
#: A message that we may read comes back within so many round trips to the broker, ...
_ECHO_TRIPS = 20
#: ... and not before this, nor after that.
_ECHO_S = (0.25, 5.0)
_RECEIVE_MAXIMUM = 100
#: Twice the largest package.
_MOST_HEARD_BYTES = 128 << 20


@dataclass(frozen=True)
class Granted:
    """What the broker said when it let us in.

    Attributes:
        mqtt5: or MQTT 3.1.1.
        max_packet_bytes: of a packet that it takes; None: it named no limit.
        receive_maximum: unacknowledged messages that it takes.
        seconds: from the first byte to the broker's yes, TLS included.
    """

    mqtt5: bool
    max_packet_bytes: int | None
    receive_maximum: int
    seconds: float


class Probe:
    """One connection.

    Args:
        settings: of the broker, its files located.
        client_id: of this probe.

    Raises:
        ConfigError: a file that the settings name cannot be read.
    """

    def __init__(self, settings: BrokerSettings, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        #: The session is that of the service: what it subscribed to is not ours to end.
        self.is_shared = False
        #: What the last answer took.
        self.answer_s = 0.0
        #: Topic, payload and retain flag of what came, up to a limit: whoever is at the other end
        #: may not stop.
        self.heard: list[tuple[str, bytes, bool]] = []
        self._room_bytes = _MOST_HEARD_BYTES
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
        """Connect and log in, with MQTT 3.1.1 where the settings allow it and 5 is unknown.

        Raises:
            LinkError: refused, or no answer; says why.
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
        """Whether the broker says what became of a message (MQTT 3.1.1 knows only yes)."""
        return self._driver.mqtt5

    @property
    def patience_s(self) -> float:
        """How long to wait for a message that may never come."""
        low, high = _ECHO_S
        return min(high, max(low, _ECHO_TRIPS * self.answer_s))

    def publish(self, topic: str, payload: bytes = b"") -> int:
        """Publish, not retained; returns the broker's reason code, below 0x80 for a yes.

        Raises:
            LinkError: the connection ended.
        """
        return int(self._ask("published", lambda c: c.publish(topic, payload, QOS)).value)

    def subscribe(self, filters: Sequence[str]) -> list[int]:
        """Subscribe; returns the broker's reason codes, below 0x80 for a yes.

        Raises:
            LinkError: the connection ended.
        """
        names = [(name, QOS) for name in filters]
        return [int(code.value) for code in self._ask("subscribed", lambda c: c.subscribe(names))]

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Leave nothing behind in the session."""
        self._network.call(lambda: self._driver.client.unsubscribe(list(filters)))

    def listen(self, found: Callable[[], bool], timeout_s: float) -> bool:
        """Take messages into `heard` until `found()`, at most `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while not found() and (left_s := end_s - time.monotonic()) > 0 and self._down is None:
            self._wait_for("message", left_s)
        return found()

    def take_all(self) -> None:
        """Take messages into `heard` until no more come."""
        end_s = time.monotonic() + _LONGEST_S
        while self._wait_for("message", self.patience_s) and time.monotonic() < end_s:
            continue

    def _ask(self, answer: str, question: Callable[[paho.Client], Any]) -> Any:
        began_s = time.monotonic()
        found = None
        if self._down is None:
            self._network.call(lambda: question(self._driver.client))
            found = self._wait_for(answer, _ANSWER_S)
        self.answer_s = time.monotonic() - began_s
        if found is None:
            down = self._down or LinkDown(
                f"broker {self._settings.address} gave no answer within {_ANSWER_S:g} s"
            )
            raise LinkError(down.reason)
        return found

    def _wait_for(self, wanted: str, timeout_s: float) -> Any:
        """The next answer of a kind; None when the connection ends or none comes in time."""
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
        self._driver.speak(mqtt5=mqtt5)
        self._driver.connect(self._secrets, self._opened)

    def _opened(self, error: BaseException | None) -> None:
        if error is None:
            self._is_open = True
            return
        down = disconnect_reasons.unreachable(self._settings, error, self._secrets.proxy)
        self._answers.put(("down", down))

    def connected(self, present: bool, code: ReasonCode, properties: Properties) -> None:
        """CONNACK."""
        self.is_shared, self._is_up = present, not code.is_failure
        self._answers.put(("up", (code, properties)))

    def disconnected(self, by_broker: bool, code: ReasonCode) -> None:
        """The connection ended."""
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
        """SUBACK."""
        self._answers.put(("subscribed", codes))

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """PUBACK."""
        self._answers.put(("published", code))

    def received(self, message: paho.MQTTMessage) -> None:
        """PUBLISH; acknowledged only when it is retained, see the module."""
        if message.retain:  # a copy: it stays where it is, and many would not come otherwise
            self._driver.client.ack(message.mid, QOS)
        self._answers.put(("message", (message.topic, bytes(message.payload), message.retain)))

    def broken(self) -> None:
        """Reading or writing raised."""
        self._answers.put(("down", disconnect_reasons.lost(self._settings, 0)))


def packet_limit(granted: Granted) -> int:
    """Bytes of a packet that the broker takes, whether it named a limit or not."""
    return granted.max_packet_bytes or NO_PACKET_LIMIT
