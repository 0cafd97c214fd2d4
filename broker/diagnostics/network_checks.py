"""Checks of names, TCP and TLS on the way to the broker."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from broker.diagnostics.host_and_files import out_of_date
from broker.link import disconnect_reasons
from broker.link.settings import PLAIN_PORT, TLS_PORT, BrokerSettings
from broker.security.certificate import Certificate, parse_certificate
from fedge.check_result import Check, failed, ok, skipped, warning


@dataclass(frozen=True)
class _Stop:
    """Address of the first TCP connection: the broker, or the proxy before it."""

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


def check_names(settings: BrokerSettings) -> Iterator[Check]:
    """Checks that the broker's host name has an address."""
    stop = _first_stop(settings)
    began_s = time.perf_counter()
    try:
        found = socket.getaddrinfo(stop.host, stop.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield failed(
            "names",
            f"{stop.host} was not found: {error.strerror}",
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


def check_tcp(settings: BrokerSettings) -> Iterator[Check]:
    """Checks that the broker's port, or the proxy before it, accepts a connection."""
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
        advice = "is the network up, is the address right, does a firewall drop packets? "
    tried = stop.key == "broker" and not isinstance(error, TimeoutError)
    for port in (TLS_PORT, PLAIN_PORT) if tried else ():
        if port == settings.port:
            continue
        with contextlib.suppress(OSError):
            _connect(settings, port).close()
            advice += f"Port {port} answers: is broker.port wrong?"
            break
    return failed("tcp", f"{stop.address}: {text}", advice.strip(), "network")


def check_tls(settings: BrokerSettings) -> Iterator[Check]:
    """Checks that the TLS handshake succeeds, and with which certificate."""
    if settings.tls is None:
        is_local = settings.host in ("127.0.0.1", "::1", "localhost")
        found = "the connection is not encrypted"
        if is_local:
            yield ok("tls", f"{found}, and stays on this machine", "network")
        else:
            advice = "anyone on the network path can read and change messages: see docs/security.md"
            yield warning("tls", found, advice, "network")
        return
    if _first_stop(settings).key == "proxy":
        yield skipped("tls", "behind a proxy: checked at the login", "network")
        return
    try:
        certificate, version = _handshake(settings, settings.tls.context())
    except (OSError, ValueError) as error:
        yield _tls_failure(settings, error)
        return
    renew = "renew the broker's certificate (`fedge broker rotate-broker`)"
    what = f"the broker's certificate ({certificate.name})"
    facts: dict[str, Any] = {"not_after": certificate.not_after.isoformat(), "version": version}
    yield out_of_date("tls", what, certificate, renew) or ok(
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
    advice = "do not switch TLS off: another machine may pose as the broker"
    with contextlib.suppress(OSError, ValueError):
        certificate, _ = _handshake(settings, context)
        advice = (
            f"the broker shows a certificate of {certificate.name!r}, signed by "
            f"{certificate.issuer!r}, made for {', '.join(certificate.hosts) or 'no host'}, from "
            f"{certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}. Use that host "
            "name, install that authority, or renew the certificate; "
        ) + advice
    return failed("tls", found, advice, "network")
