"""Checks of the clock and of the files that a configuration names."""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from broker.link.settings import BrokerSettings, TlsSettings
from broker.link.transport_settings import proxy_arguments
from broker.security.access_control import is_login_of
from broker.security.certificate import Certificate, read_certificate
from fedge.check_result import Check, failed, ok, warning
from fedge.errors import ConfigError

#: Years in which the clock can be right: after fedge began, before its certificates end.
_YEARS = range(2025, 2100)
#: Warning time before a certificate expires.
_SOON = timedelta(days=30)
#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR = 5


def clock_check(now: datetime | None = None) -> Check:
    """Checks that this machine's clock is set and synchronised."""
    now = now or datetime.now(UTC)
    text = now.strftime("%Y-%m-%d %H:%M UTC")
    if now.year not in _YEARS:
        return failed(
            "clock", f"clock says {text}", "set the clock (timedatectl set-time or set-ntp true)"
        )
    if _is_unsynchronised():
        return warning(
            "clock",
            f"{text}; not synchronised",
            "certificates need a correct clock: start a time service (timedatectl set-ntp true)",
        )
    return ok("clock", text)


def _is_unsynchronised() -> bool:
    """Returns whether the kernel reports no synchronisation; False if it cannot be asked."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # modes 0: read only
    except (OSError, AttributeError):
        return False
    return bool(state == _TIME_ERROR)


def check_files(settings: BrokerSettings, name: str) -> Iterator[Check]:
    """Checks the passwords and certificates that the settings name."""
    try:
        proxy = settings.secrets().proxy
        if proxy is not None:
            proxy_arguments(proxy)  # raises if PySocks is missing
        if settings.tls is None:
            yield from _open_secrets(settings, None)
            yield ok("files", "no TLS, no certificates")
            return
        settings.tls.context()
    except ConfigError as error:
        advice = "correct the file or the configuration; is this the user that the service runs as?"
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
        yield ok("files", "the system's authorities, no client certificate")


def _open_secrets(settings: BrokerSettings, tls: TlsSettings | None) -> Iterator[Check]:
    """Yields a warning for each secret file that every user may read."""
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
    """Returns a warning if every user of this machine may read a secret; else None."""
    if not path.stat().st_mode & stat.S_IROTH:
        return None
    found = f"{key} {path} is readable by every user"
    return warning(
        check, found, f"chmod o= {path}; renew the secret if this machine has other users"
    )


def _certificate_file(key: str, path: Path, name: str) -> Check:
    try:
        certificate = read_certificate(path)
    except ValueError as error:  # OpenSSL, which reads more formats than we do, has accepted it
        return warning("files", f"tls.{key}: {error}", "check its dates with openssl x509")
    own = key == "cert_file"
    what = f"our certificate {certificate.name!r}" if own else f"authority {certificate.name!r}"
    renew = (
        "enrol this device again (fedge broker rotate)"
        if own
        else "install the present authority's certificate"
    )
    problem = out_of_date("files", what, certificate, renew)
    if problem is not None and problem.state == "failed":
        return problem
    facts: dict[str, Any] = {"not_after": certificate.not_after.isoformat()}
    # The fleet's own certificates have a login for a name, those of other brokers often the id.
    is_ours = certificate.name == name or is_login_of(certificate.name, name)
    if own and certificate.name and not is_ours:
        return warning(
            "files",
            f"our certificate is for {certificate.name!r}, not for {name!r}",
            "a broker with access rules by certificate refuses this client's messages: "
            "is this the right bundle?",
            **facts,
        )
    return problem or ok("files", f"{what}, until {certificate.not_after:%Y-%m-%d}", **facts)


def out_of_date(check: str, what: str, certificate: Certificate, renew: str) -> Check | None:
    """Returns a warning or failure about a certificate's dates; None: they are fine."""
    now = datetime.now(UTC)
    if now < certificate.not_before:
        return failed(
            check,
            f"{what} is valid from {certificate.not_before:%Y-%m-%d %H:%M} UTC on; "
            f"this machine's clock says {now:%Y-%m-%d %H:%M}",
            "set the clock",
        )
    if now > certificate.not_after:
        found = f"{what} expired on {certificate.not_after:%Y-%m-%d}"
        return failed(check, found, f"{renew}; if the clock is wrong, set the clock")
    if now > certificate.not_after - _SOON:
        found = f"{what} expires on {certificate.not_after:%Y-%m-%d}"
        return warning(check, found, renew, not_after=certificate.not_after.isoformat())
    return None
