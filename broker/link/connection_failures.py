"""Failures of one client's connections: why each ended, and which MQTT version to try next."""

from __future__ import annotations

from typing import Literal

from paho.mqtt.reasoncodes import ReasonCode

from broker.link import disconnect_reasons
from broker.link.backoff import STABLE_S
from broker.link.link import LinkDown
from broker.link.paho_client import Driver
from broker.link.send_queue import Outbox
from broker.link.settings import BrokerSettings

#: So many short connections in a row look like two clients with one id that disconnect each other.
#: Mosquitto 2.0.11 and the embedded broker close the older connection without a reason.
_SUSPICIOUS = 3


class VersionChoice:
    """Chooses the MQTT version of each attempt: 5, or 3.1.1 with a broker that knows no other.

    A broker that does not know MQTT 5 has to say so (MQTT 3.1.1 §3.1.2.2); some just close the
    connection. After a refusal 3.1.1 is used from then on. After a closed connection 3.1.1 is
    tried once: the broker may have had any reason, and 3.1.1 for good would lose what MQTT 5 has.

    Args:
        wanted: `protocol` of the configuration.
    """

    def __init__(self, wanted: Literal["auto", "5", "3.1.1", 5]) -> None:
        self._auto = wanted == "auto"
        self._usual_is_5 = wanted != "3.1.1"
        self._trial = False

    def take(self) -> bool:
        """Returns whether the next attempt speaks MQTT 5."""
        trial, self._trial = self._trial, False
        return self._usual_is_5 and not trial

    def unknown(self, *, mqtt5: bool) -> bool:
        """Notes that the broker does not know the version; returns whether to try the other now."""
        if self._auto:
            self._usual_is_5 = not mqtt5
        return self._auto and mqtt5

    def silent(self, *, mqtt5: bool) -> bool:
        """Notes that CONNECT was not answered; returns whether to try the other version now."""
        if self._auto:
            self._trial = mqtt5
            self._usual_is_5 = True
        return self._auto and mqtt5


class ConnectionFailures:
    """Explains why connections end.

    Attributes:
        retry_at_once: the next attempt speaks another MQTT version, without back-off.

    Args:
        settings: how to reach the broker.
        client_id: id of the client.
        driver: serves the connection.
        outbox: messages in flight, one of which may be too large for the broker.
    """

    def __init__(
        self, settings: BrokerSettings, client_id: str, driver: Driver, outbox: Outbox
    ) -> None:
        self.retry_at_once = False
        self._settings = settings
        self._client_id = client_id
        self._driver = driver
        self._outbox = outbox
        self._versions = VersionChoice(settings.protocol)
        self._refusal: LinkDown | None = None
        self._short_connections = 0

    def begin_attempt(self) -> bool:
        """Forgets the last attempt; returns whether the next one speaks MQTT 5."""
        self._refusal = None
        self.retry_at_once = False
        return self._versions.take()

    def refused(self, code: ReasonCode) -> None:
        """Notes a CONNACK with a failure code; the connection ends next."""
        self._refusal = disconnect_reasons.not_admitted(self._settings, code.value, code.getName())
        if code.value == disconnect_reasons.UNKNOWN_VERSION:
            self.retry_at_once = self._versions.unknown(mqtt5=self._driver.mqtt5)

    def ended(
        self, code: ReasonCode, *, by_broker: bool, before_connack: bool, lasted_s: float
    ) -> LinkDown:
        """Returns why a connection ended.

        Args:
            code: reason code of MQTT, or paho's.
            by_broker: the broker sent DISCONNECT.
            before_connack: the broker had not answered CONNECT.
            lasted_s: seconds since the link was last up.
        """
        if self._refusal is not None:
            return self._refusal
        is_protocol_error = code.value == disconnect_reasons.PROTOCOL
        if before_connack and not self._driver.mqtt5 and is_protocol_error:
            # In 3.1.1 paho does not tell that the broker does not know the version.
            self._versions.unknown(mqtt5=False)
            return disconnect_reasons.not_admitted(
                self._settings, disconnect_reasons.UNKNOWN_VERSION, code.getName()
            )
        if by_broker:
            return disconnect_reasons.disconnected_by_broker(
                self._settings, self._client_id, code.value, code.getName()
            )
        if before_connack:
            down = disconnect_reasons.no_answer(self._settings, self._driver.complaint)
            self.retry_at_once = not down.refused and self._versions.silent(
                mqtt5=self._driver.mqtt5
            )
            return down
        if self._driver.farewell:
            return disconnect_reasons.websocket_closed(self._settings, self._driver.farewell)
        return self._without_reason(code.value, lasted_s)

    def _without_reason(self, code: int, lasted_s: float) -> LinkDown:
        is_short = lasted_s < STABLE_S
        self._short_connections = self._short_connections + 1 if is_short else 0
        # In MQTT 5 only soon after connecting: a slow network loses connections too.
        if (is_short or not self._driver.mqtt5) and (packet_bytes := self._outbox.suspect()):
            return disconnect_reasons.packet_too_large(self._settings, packet_bytes)
        if self._short_connections < _SUSPICIOUS:
            return disconnect_reasons.lost(self._settings, code)
        return disconnect_reasons.lost_repeatedly(
            self._settings, self._client_id, self._short_connections
        )
