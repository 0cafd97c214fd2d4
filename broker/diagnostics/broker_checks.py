"""What lies between this machine and its broker: clock, names, TCP, TLS, login, access, limits.

Each check stands on the one before: the first that fails is the one to mend, the rest are skipped.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import ssl
import stat
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broker.diagnostics.access_checks import Rights, access_checks
from broker.diagnostics.probe import Granted, Probe, packet_limit
from broker.link import disconnect_reasons
from broker.link.settings import PLAIN_PORT, TLS_PORT, BrokerSettings, TlsSettings
from broker.link.transport_settings import proxy_arguments
from broker.security.certificate import Certificate, parse_certificate, read_certificate
from fedge.check_result import Check, failed, ok, skipped, warning
from fedge.errors import ConfigError, LinkError

#: fedge did not exist before, and no certificate of ours lives so long.
_YEARS = range(2025, 2100)
#: Time to carry a new certificate to a device that nobody is near.
_SOON = timedelta(days=30)
#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR = 5
_SLOW_S = 0.5
_ROUND_TRIPS = 5
#: With smaller packets a blob has so many chunks that each costs more than its content.
_SMALL_PACKET = 8192


@dataclass(frozen=True)
class Others:
    """Whom this client expects at the broker.

    Attributes:
        filters: of what they leave retained.
        tell: what that says, by topic.
    """

    filters: tuple[str, ...]
    tell: Callable[[Mapping[str, bytes]], Check]


def network_checks(
    settings: BrokerSettings, name: str, client_id: str, rights: Rights, others: Others
) -> Iterator[Check]:
    """All of them, in the order in which a connection meets them.

    Args:
        settings: of the broker, its files located.
        name: of the agent, or "coordinator": what our certificate should be called.
        client_id: for the connection; another than the service's own.
        rights: to try.
        others: to look for at the end.
    """
    yield clock_check()
    steps: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("files", lambda: _files(settings, name)),
        ("names", lambda: _names(settings)),
        ("tcp", lambda: _tcp(settings)),
        ("tls", lambda: _tls(settings)),
    )
    rest = ["files", "names", "tcp", "tls", "login", "access", "packets", "round trip"]
    for step, look in steps:
        rest.remove(step)
        for check in look():
            yield check
            if check.state == "failed":
                yield from (skipped(later, f"{step} failed", "network") for later in rest)
                return
    yield from _at_the_broker(settings, client_id, rights, others)


def clock_check(now: datetime | None = None) -> Check:
    """Whether this machine knows what time it is."""
    now = now or datetime.now(UTC)
    text = now.strftime("%Y-%m-%d %H:%M UTC")
    if now.year not in _YEARS:
        return failed("clock", f"it says {text}", "set it (timedatectl set-time), or let it be set")
    if _is_unsynchronised():
        return warning(
            "clock",
            f"{text}; nothing keeps it right",
            "certificates count by the clock: switch on a time service (timedatectl set-ntp true)",
        )
    return ok("clock", text)


def _is_unsynchronised() -> bool:
    """The kernel's word; False where it cannot be asked."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # modes 0: ask only
    except (OSError, AttributeError):
        return False
    return bool(state == _TIME_ERROR)


# --- before the first packet ----------------------------------------------------------------------


def _files(settings: BrokerSettings, name: str) -> Iterator[Check]:
    """Password and certificates that the settings name."""
    try:
        proxy = settings.secrets().proxy
        if proxy is not None:
            proxy_arguments(proxy)  # needs a package
        if settings.tls is None:
            yield from _open_secrets(settings, None)
            yield ok("files", "no certificates needed: no TLS")
            return
        settings.tls.context()
    except ConfigError as error:
        advice = "do so, or correct the configuration; is this the user that the service runs as?"
        yield failed("files", str(error), advice)
        return
    yield from _open_secrets(settings, settings.tls)
    is_named = False
    for key in ("ca_file", "cert_file"):
        path = getattr(settings.tls, key)
        if path:
            is_named = True
            yield _certificate_file(key, Path(path), name)
    if not is_named:
        yield ok("files", "the system's authorities, no certificate of our own")


def _open_secrets(settings: BrokerSettings, tls: TlsSettings | None) -> Iterator[Check]:
    """Warnings of files that should be for one reader alone."""
    websocket, proxy = settings.websocket, settings.proxy
    for key, name in (
        ("tls.key_file", tls.key_file if tls else ""),
        ("password_file", settings.password_file),
        ("websocket.headers_file", websocket.headers_file if websocket else ""),
        ("proxy.password_file", proxy.password_file if proxy else ""),
    ):
        if name and (check := open_secret("files", key, Path(name))):
            yield check


def open_secret(check: str, key: str, path: Path) -> Check | None:
    """A warning when everybody on this machine may read a secret."""
    if not path.stat().st_mode & stat.S_IROTH:
        return None
    found = f"{key} {path} is readable by everybody"
    return warning(check, found, f"chmod o= {path}, and renew it if others were here")


def _certificate_file(key: str, path: Path, name: str) -> Check:
    try:
        certificate = read_certificate(path)
    except ValueError as error:  # OpenSSL has taken it: it can read more than we can
        return warning("files", f"tls.{key}: {error}", "look at its dates with openssl x509")
    own = key == "cert_file"
    what = f"our certificate {certificate.name!r}" if own else f"authority {certificate.name!r}"
    renew = "enrol this device again (fedge broker rotate)" if own else "take the present authority"
    problem = _out_of_date("files", what, certificate, renew)
    if problem is not None and problem.state == "failed":
        return problem
    facts: dict[str, Any] = {"not_after": certificate.not_after.isoformat()}
    if own and certificate.name and certificate.name != name:
        return warning(
            "files",
            f"our certificate is that of {certificate.name!r}, not of {name!r}",
            "a broker that goes by certificates refuses what this client is to do: "
            "is it the right bundle?",
            **facts,
        )
    return problem or ok("files", f"{what}, until {certificate.not_after:%Y-%m-%d}", **facts)


def _out_of_date(check: str, what: str, certificate: Certificate, renew: str) -> Check | None:
    now = datetime.now(UTC)
    if now < certificate.not_before:
        return failed(
            check,
            f"{what} counts from {certificate.not_before:%Y-%m-%d %H:%M} UTC on; "
            f"this machine's clock says {now:%Y-%m-%d %H:%M}",
            "set the clock",
        )
    if now > certificate.not_after:
        found = f"{what} has expired on {certificate.not_after:%Y-%m-%d}"
        return failed(check, found, f"{renew}, if the clock is right")
    if now > certificate.not_after - _SOON:
        found = f"{what} expires on {certificate.not_after:%Y-%m-%d}"
        return warning(check, found, renew, not_after=certificate.not_after.isoformat())
    return None


@dataclass(frozen=True)
class _Stop:
    """Where the first TCP connection goes: the broker, or the proxy before it."""

    key: str
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _first_stop(settings: BrokerSettings) -> _Stop:
    proxy = settings.secrets().proxy
    if proxy is None:
        return _Stop("broker", settings.host, settings.port)
    return _Stop("proxy", proxy.host, proxy.port)


def _names(settings: BrokerSettings) -> Iterator[Check]:
    stop = _first_stop(settings)
    began_s = time.perf_counter()
    try:
        found = socket.getaddrinfo(stop.host, stop.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield failed(
            "names",
            f"{stop.host} is not found: {error.strerror}",
            f"check the {stop.key}'s host, and this machine's name service (/etc/resolv.conf)",
            "network",
        )
        return
    seconds = time.perf_counter() - began_s
    addresses = sorted({str(address[0]) for *_, address in found})
    if addresses == [stop.host]:
        yield ok("names", f"{stop.host} is an address", "network", addresses=addresses)
        return
    text = f"{stop.host} is {', '.join(addresses)} ({1000 * seconds:.0f} ms)"
    yield ok("names", text, "network", addresses=addresses, seconds=seconds)


def _tcp(settings: BrokerSettings) -> Iterator[Check]:
    stop = _first_stop(settings)
    began_s = time.perf_counter()
    try:
        _connect(settings, stop.port, stop.host).close()
    except OSError as error:
        yield _unreachable(settings, stop, error)
        return
    seconds = time.perf_counter() - began_s
    found = f"the {stop.key} {stop.address} answers in {1000 * seconds:.1f} ms"
    yield ok("tcp", found, "network", seconds=seconds)


def _connect(settings: BrokerSettings, port: int, host: str = "") -> socket.socket:
    address = (host or settings.host, port)
    return socket.create_connection(address, settings.connect_timeout_s)


def _unreachable(settings: BrokerSettings, stop: _Stop, error: OSError) -> Check:
    text = error.strerror or str(error) or type(error).__name__
    advice = f"is the {stop.key} running? "
    if isinstance(error, TimeoutError):
        advice = "does a firewall drop it, is the network up, is it the right address? "
    tried = stop.key == "broker" and not isinstance(error, TimeoutError)
    for port in (TLS_PORT, PLAIN_PORT) if tried else ():
        if port == settings.port:
            continue
        with contextlib.suppress(OSError):
            _connect(settings, port).close()
            advice += f"Port {port} answers: is broker.port wrong?"
            break
    return failed("tcp", f"{stop.address}: {text}", advice.strip(), "network")


def _tls(settings: BrokerSettings) -> Iterator[Check]:
    if settings.tls is None:
        is_local = settings.host in ("127.0.0.1", "::1", "localhost")
        found = "the connection is not encrypted"
        if is_local:
            yield ok("tls", f"{found}, and stays on this machine", "network")
        else:
            advice = "others on the way can read and change everything: docs/security.md"
            yield warning("tls", found, advice, "network")
        return
    if _first_stop(settings).key == "proxy":
        yield skipped("tls", "behind the proxy: seen at the login", "network")
        return
    try:
        certificate, version = _handshake(settings, settings.tls.context())
    except (OSError, ValueError) as error:
        yield _tls_failure(settings, error)
        return
    renew = "renew the broker's certificate (`fedge broker rotate-broker`)"
    what = f"the broker's certificate ({certificate.name})"
    facts: dict[str, Any] = {"not_after": certificate.not_after.isoformat(), "version": version}
    yield _out_of_date("tls", what, certificate, renew) or ok(
        "tls",
        f"{version}, signed by {certificate.issuer}, until {certificate.not_after:%Y-%m-%d}",
        "network",
        **facts,
    )


def _handshake(settings: BrokerSettings, context: ssl.SSLContext) -> tuple[Certificate, str]:
    with (
        _connect(settings, settings.port) as plain,
        context.wrap_socket(plain, server_hostname=settings.host) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
        return parse_certificate(der or b""), secured.version() or "TLS"


def _tls_failure(settings: BrokerSettings, error: OSError | ValueError) -> Check:
    found = disconnect_reasons.unreachable(settings, error).reason
    if not isinstance(error, ssl.SSLCertVerificationError):
        advice = "does the broker speak TLS on this port (8883, not 1883)?"
        return failed("tls", found, advice, "network")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    advice = "do not go on without: somebody may stand between"
    with contextlib.suppress(OSError, ValueError):
        certificate, _ = _handshake(settings, context)
        advice = (
            f"the broker shows a certificate of {certificate.name!r}, signed by "
            f"{certificate.issuer!r}, made for {', '.join(certificate.hosts) or 'no host'}, from "
            f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}. Name that "
            "host, take that authority, or renew it; "
        ) + advice
    return failed("tls", found, advice, "network")


# --- with the broker ------------------------------------------------------------------------------


def _at_the_broker(
    settings: BrokerSettings, client_id: str, rights: Rights, others: Others
) -> Iterator[Check]:
    rest = ["login", "access", "packets", "round trip"]
    try:
        with Probe(settings, client_id) as probe:
            granted = probe.connect()
            rest.remove("login")
            yield _login(settings, granted)
            yield _packets(granted)
            rest.remove("packets")
            yield from access_checks(probe, rights)
            rest.remove("access")
            yield _round_trip(probe, rights)
            rest.remove("round trip")
            yield _presence(probe, others)
    except (LinkError, ConfigError) as error:
        was_in = "login" not in rest
        at = rest.pop(0) if rest else "others"
        if was_in and settings.tls is not None and settings.tls.cert_file:
            # The broker takes two clients with one certificate for one, and hangs up on the first.
            advice = "the service itself is running with this certificate: stop it and look again"
            yield warning(at, str(error), advice, "network")
        else:
            yield failed(at, str(error), _login_advice(error), "network")
        yield from (skipped(later, "no connection", "network") for later in rest)


def _login_advice(error: Exception) -> str:
    text = str(error)
    if "revoked" in text:
        return (
            "this certificate was shut out: after a rotation install the new one; a device that "
            "was revoked comes back under another name (fedge broker enrol)"
        )
    if "not yet valid" in text:
        return (
            "set the broker's clock; if it was ahead when the fleet was last changed, change it "
            "once more (fedge broker enrol, or rotate): docs/security.md"
        )
    if "certificate" in text:
        return "compare with what the broker was told (fedge broker list)"
    if "login" in text:
        return "compare with the broker's accounts"
    return "look into the broker's log"


def _login(settings: BrokerSettings, granted: Granted) -> Check:
    who = "anonymously"
    if settings.username:
        who = f"as {settings.username}"
    elif settings.tls is not None and settings.tls.cert_file:
        who = "with our certificate"
    way = " over WebSockets" if settings.websocket else ""
    proxy = settings.secrets().proxy
    way += f" through the {proxy.words}" if proxy else ""
    found = f"let in {who}{way} after {1000 * granted.seconds:.0f} ms"
    facts: dict[str, Any] = {"seconds": granted.seconds, "mqtt": "5" if granted.mqtt5 else "3.1.1"}
    if not granted.mqtt5:
        return warning(
            "login",
            f"{found}; {disconnect_reasons.OLDER}",
            "prefer a broker of MQTT 5",
            "network",
            **facts,
        )
    return ok("login", found, "network", **facts)


def _packets(granted: Granted) -> Check:
    limit = packet_limit(granted)
    named = "no limit" if granted.max_packet_bytes is None else f"up to {limit:,} bytes"
    facts: dict[str, Any] = {
        "max_packet_bytes": granted.max_packet_bytes,
        "receive_max": granted.receive_maximum,
    }
    found = f"{named}, {granted.receive_maximum:,} at a time"
    if limit < _SMALL_PACKET:
        advice = f"raise the broker's limit to {_SMALL_PACKET} or more (max_packet_size)"
        return warning("packets", found, advice, "network", **facts)
    return ok("packets", found, "network", **facts)


def _round_trip(probe: Probe, rights: Rights) -> Check:
    topic, payload = rights.publishes[0]
    seconds = []
    for _ in range(_ROUND_TRIPS):
        began_s = time.perf_counter()
        probe.publish(topic, payload)
        seconds.append(time.perf_counter() - began_s)
    median_s = statistics.median(seconds)
    found = f"{1000 * median_s:.1f} ms (median of {_ROUND_TRIPS}, worst {1000 * max(seconds):.1f})"
    facts = {"median_s": median_s, "worst_s": max(seconds)}
    if median_s > _SLOW_S:
        advice = "it works; give rounds long deadlines (round.deadline_s, stall_s)"
        return warning("round trip", found, advice, "network", **facts)
    return ok("round trip", found, "network", **facts)


def _presence(probe: Probe, others: Others) -> Check:
    del probe.heard[:]
    probe.subscribe(others.filters)
    probe.take_all()
    if not probe.is_shared:
        probe.unsubscribe(others.filters)
    return others.tell({t: payload for t, payload, retained in probe.heard if retained and payload})
