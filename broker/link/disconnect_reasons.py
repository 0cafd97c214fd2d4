"""Reasons of lost connections and of refusals, in words, from MQTT 5 reason codes and errors."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from broker.link.link import LinkDown
from broker.link.settings import BrokerSettings
from broker.link.transport_settings import OpenProxy
from broker.link.websocket import WebSocketRefused

UNKNOWN_VERSION = 0x84
PROTOCOL = 0x82
#: MQTT 5 §2.4. Codes after which a retry without a change will hardly help.
_REFUSALS = {
    UNKNOWN_VERSION: "it does not speak our version of MQTT",
    0x85: "the client id is not allowed",
    0x86: "bad user name or password",
    0x87: "not authorised",
    0x8A: "this client is banned",
    0x8C: "bad authentication method",
    0x9A: "it does not support retained messages",
    0x9B: "it does not support QoS 1",
}
_LOGIN = (0x86, 0x87, 0x8C)

TAKEN_OVER = 0x8E
KEEPALIVE = 0x8D
_DISCONNECTS = {
    0x81: "it could not read a packet",
    PROTOCOL: "protocol error",
    0x87: "not authorised",
    0x8B: "it is shutting down",
    KEEPALIVE: "keep-alive timeout",
    0x93: "too many unacknowledged messages at once",
    0x95: "a packet was larger than its limit",
    0x96: "too many messages",
    0x97: "quota exceeded",
    0x98: "an operator closed the connection",
}

_UNSPECIFIED = 0x80
PACKET_TOO_LARGE = 0x95
NOT_AUTHORISED = 0x87
#: MQTT 5 §2.4. Codes of a negative acknowledgement: PUBACK, PUBREC, SUBACK.
_NEGATIVE = {
    _UNSPECIFIED: "unspecified error",
    0x83: "refused by a rule of its own",
    NOT_AUTHORISED: "not authorised",
    0x8F: "the topic filter is not allowed",
    0x90: "the topic is not allowed",
    0x91: "the packet identifier is in use",
    PACKET_TOO_LARGE: "packet too large",
    0x97: "quota exceeded",
    0x99: "the payload has a wrong format",
    0x9A: "it does not support retained messages",
    0x9B: "it does not support QoS 1",
    0x9E: "it does not support shared subscriptions",
    0xA1: "it does not support subscription identifiers",
    0xA2: "it does not support wildcards",
}
#: What an operator can do about a negative acknowledgement.
_NEXT_STEPS = {
    NOT_AUTHORISED: "give this client the right (docs/security.md)",
    0x90: "give this client the right (docs/security.md)",
    PACKET_TOO_LARGE: "raise the broker's limit of message size",
    0x97: "raise the broker's quota, or free some of it",
}
_ACKNOWLEDGEMENTS = (
    PacketTypes.CONNACK,
    PacketTypes.PUBACK,
    PacketTypes.PUBREC,
    PacketTypes.SUBACK,
    PacketTypes.UNSUBACK,
    PacketTypes.DISCONNECT,
)

_VERSIONS = {"auto": "5 or 3.1.1", "5": "5; `protocol: auto` also allows 3.1.1", "3.1.1": "3.1.1"}

#: Features that a connection with MQTT 3.1.1 lacks, for operators.
MQTT311_LIMITS = (
    "MQTT 3.1.1: no message expiry, no session expiry, no will delay, no packet limits, no reason"
    " codes"
)

#: Names of TLS alerts (RFC 8446 §6.2), as all versions of OpenSSL end their error names.
_ALERT = re.compile(r"ALERT_([A-Z_]+)$")
#: "Canceling the handshake for some reason unrelated to a protocol failure" (RFC 8446 §6.1): what
#: `broker.enrolment.front_door` says to those it has no room for.
_BUSY_ALERT = "USER_CANCELLED"
_CERTIFICATE_ALERTS = {
    "CERTIFICATE_REQUIRED": "it requires one",
    "HANDSHAKE_FAILURE": "it requires one, or supports none of our ciphers",
    "CERTIFICATE_EXPIRED": "it has expired by the broker's clock",
    "CERTIFICATE_REVOKED": "it was revoked",
    "UNKNOWN_CA": "it is of another authority than the broker's",
    "BAD_CERTIFICATE": "it is damaged, or not yet valid by the broker's clock",
    "UNSUPPORTED_CERTIFICATE": "it is not a client certificate",
    "CERTIFICATE_UNKNOWN": "it is not accepted",
    "DECRYPT_ERROR": "its signature is wrong: of another authority than the broker's?",
}
#: OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and of addresses.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, (62, 64)


def accept_every_code() -> None:
    """Lets paho read every failure code in every acknowledgement.

    paho 2.2 knows which code belongs to which packet by the letter of MQTT 5 and raises on others:
    Mosquitto's 0x95 in a PUBACK ends the connection, the message is sent again on the next one, and
    so on for ever.
    """
    names = dict(ReasonCode.names)
    for code in range(0x80, 0x100):
        name = next(iter(names.get(code, ())), f"Reason code 0x{code:02X}")
        names[code] = {name: list(_ACKNOWLEDGEMENTS)}
    ReasonCode.names = names


def negative(code: int) -> str:
    """Returns the meaning of a negative acknowledgement's code."""
    return _NEGATIVE.get(code, f"reason code 0x{code:02X}")


def next_step(code: int, *, is_subscription: bool = False) -> str:
    """Returns what to do about a negative acknowledgement."""
    if is_subscription and code == _UNSPECIFIED:
        code = NOT_AUTHORISED  # MQTT 3.1.1 has no other code (§3.9.3); mostly it means this one
    return _NEXT_STEPS.get(code, "read the broker's log")


def missing_feature(properties: object) -> tuple[int, str] | None:
    """Returns reason code and name of a feature that the server lacks; None: it has all."""
    if getattr(properties, "MaximumQoS", 1) == 0:
        return 0x9B, "QoS not supported"
    if getattr(properties, "RetainAvailable", 1) == 0:
        return 0x9A, "Retain not supported"
    return None


def unreachable(
    settings: BrokerSettings, error: BaseException, proxy: OpenProxy | None = None
) -> LinkDown:
    """Returns why no connection could be made: DNS, TCP, proxy, TLS or WebSocket failed."""
    where = f"broker {settings.address}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_trusted(settings, error)
    if isinstance(error, ssl.SSLEOFError) and settings.websocket:
        return no_answer(settings)
    if settings.tls is not None and isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        # A server without TLS takes the first bytes for a broken packet and hangs up.
        return LinkDown(
            f"TLS with {where} failed, connection closed: is it a TLS port (8883 as a rule)?"
            " For a port without TLS leave out broker.tls"
        )
    if isinstance(error, ssl.SSLError) and (error.reason or "").endswith(_BUSY_ALERT):
        return LinkDown(f"{where} is busy: it takes no more connections for now", busy=True)
    if isinstance(error, ssl.SSLError):
        return _certificate_refused(settings, error) or LinkDown(
            f"TLS with {where} failed: {error.reason or error}: is it a TLS port (8883 as a rule)?"
        )
    if isinstance(error, WebSocketRefused):
        return _no_websocket(settings, error)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    way = f" through the {proxy.words}" if proxy else ""
    return LinkDown(f"cannot reach {where}{way}: {text}")


def _no_websocket(settings: BrokerSettings, error: WebSocketRefused) -> LinkDown:
    """Returns why the server did not accept a WebSocket."""
    hint = {
        0: "is it a port for WebSockets?",
        401: "it requires a login (headers_file)",
        403: "it denies access",
        404: f"check `path`, {settings.websocket.path if settings.websocket else ''}",
    }.get(error.status, "")
    words = f"no WebSocket at {settings.address}: {error}" + (f": {hint}" if hint else "")
    return LinkDown(words, refused=error.status in (401, 403, 404))


def _not_trusted(settings: BrokerSettings, error: ssl.SSLCertVerificationError) -> LinkDown:
    """Returns why the broker's certificate is not trusted."""
    ca_file = settings.tls.ca_file if settings.tls else ""
    what = f"certificate of broker {settings.address} is not trusted: {error.verify_message}"
    if error.verify_code == _NOT_YET_VALID:
        # Transient: a device without a clock battery has the time a minute later.
        return LinkDown(f"{what}: this device's clock says {_clock()}; set it")
    if error.verify_code == _EXPIRED:
        hint = f": this device's clock says {_clock()}"
    elif error.verify_code in _WRONG_NAME:
        hint = f": `host` must be a name in the certificate, not {settings.host}"
    else:
        hint = f" (ca_file {ca_file or 'of the system'}): is that this fleet's authority?"
    return LinkDown(what + hint, refused=True)


def _clock() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _certificate_refused(settings: BrokerSettings, error: ssl.SSLError) -> LinkDown | None:
    """Returns why the broker refused our certificate; None: TLS failed for another reason."""
    match = _ALERT.search(error.reason or "")
    if match is None or match[1] not in _CERTIFICATE_ALERTS:
        return None
    file = settings.tls.cert_file if settings.tls else ""
    return LinkDown(
        f"broker {settings.address} refused our certificate"
        f" ({_CERTIFICATE_ALERTS[match[1]]}; cert_file {file or 'is not given'})",
        refused=True,
    )


def no_answer(settings: BrokerSettings, error: ssl.SSLError | None = None) -> LinkDown:
    """Returns why there was no CONNACK although TCP works.

    Args:
        settings: how to reach the broker.
        error: error of TLS, if any. In TLS 1.3 a client learns only after the handshake that its
            certificate was refused.
    """
    if error is not None and (down := _certificate_refused(settings, error)):
        return down
    hint = (
        "is it an MQTT port without TLS? For a TLS port (8883 as a rule) set broker.tls,"
        " for WebSockets broker.websocket"
    )
    if settings.tls:
        hint = "was our certificate refused?"
    return LinkDown(f"broker {settings.address} did not answer: {hint}")


def not_admitted(settings: BrokerSettings, code: int, name: str) -> LinkDown:
    """Returns why the broker refused CONNECT."""
    text = _REFUSALS.get(code, name.lower())
    if code == UNKNOWN_VERSION:
        text = f"it does not speak MQTT {_VERSIONS[str(settings.protocol)]}"
        if settings.websocket is None:
            text += "; if it is a port for WebSockets, set broker.websocket"
    if code not in _LOGIN:
        return LinkDown(f"broker {settings.address} refused us ({text})", refused=code in _REFUSALS)
    secret = settings.password_file or settings.password_env
    check = (
        f"check username {settings.username!r}" if settings.username else "it requires a username"
    )
    if secret:
        check += f" and the password in {secret}"
    return LinkDown(
        f"broker {settings.address} refused the login ({text}): {check}",
        refused=True,
    )


def not_subscribed(settings: BrokerSettings, topic_filter: str, code: int) -> LinkDown:
    """Returns why the broker refused SUBSCRIBE."""
    return LinkDown(
        f"broker {settings.address} refused the subscription {topic_filter} ({negative(code)}):"
        f" {next_step(code, is_subscription=True)}",
        refused=True,
    )


def disconnected_by_broker(
    settings: BrokerSettings, client_id: str, code: int, name: str
) -> LinkDown:
    """Returns why the broker sent DISCONNECT."""
    if code == TAKEN_OVER:
        return LinkDown(
            f"session of {client_id!r} at broker {settings.address} was taken over:"
            " another client connected with the same id"
        )
    return LinkDown(
        f"broker {settings.address} closed the connection: {_DISCONNECTS.get(code, name.lower())}"
    )


def websocket_closed(settings: BrokerSettings, words: str) -> LinkDown:
    """Returns the reason that the WebSocket was closed with."""
    return LinkDown(f"broker {settings.address} closed the WebSocket: {words}")


def packet_too_large(settings: BrokerSettings, packet_bytes: int) -> LinkDown:
    """Returns the reason after repeated disconnects with the same large packet in flight."""
    return LinkDown(
        f"broker {settings.address} disconnected three times on a packet of {packet_bytes} bytes:"
        f" limit is {packet_bytes // 2} from now on (the broker announced none)"
    )


def test_message_too_large(settings: BrokerSettings, payload_bytes: int) -> LinkDown:
    """Returns the reason of a connection that ended while a test message was under way."""
    return LinkDown(
        f"connection to broker {settings.address} lost on a test message of {payload_bytes} bytes;"
        " looking for the largest that passes"
    )


def size_found(settings: BrokerSettings, refused: int, limit: int, least: int, lost: int) -> str:
    """Returns a limit of message size that was found, for operators."""
    lost_text = f"; {lost} waiting messages are cut anew" if lost else ""
    advice = "raise its limit (Mosquitto: message_size_limit, max_packet_size)"
    if limit <= least:
        return (
            f"broker {settings.address} refuses messages of {refused} bytes, and smaller ones may"
            f" not pass either{lost_text}: {advice} to 2000 or more"
        )
    return (
        f"broker {settings.address} takes messages of {limit} bytes (and refuses {refused}):"
        f" larger content is cut into more chunks{lost_text}; {advice} to 131072 for the fewest"
    )


def lost(settings: BrokerSettings, code: int) -> LinkDown:
    """Returns the reason of a connection that ended without one."""
    why = f": no answer for {settings.keepalive_s} s" if code == KEEPALIVE else ""
    return LinkDown(f"connection to broker {settings.address} lost{why}")


def unreadable(settings: BrokerSettings, error: BaseException) -> LinkDown:
    """Returns the reason of a connection that ended because a packet could not be handled."""
    what = str(error) or type(error).__name__
    return LinkDown(f"connection to broker {settings.address} dropped: {what[:200]}")


def lost_repeatedly(settings: BrokerSettings, client_id: str, times: int) -> LinkDown:
    """Returns the reason of connections that ended repeatedly, soon after connecting."""
    return LinkDown(
        f"connection to broker {settings.address} lost {times} times within seconds:"
        f" does another client use the id {client_id!r}?"
    )
