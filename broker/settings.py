"""How to reach a broker: what an operator writes under `broker:` in a configuration file."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import msgspec

from broker.config import located
from models.errors import ConfigError

PLAIN_PORT = 1883
TLS_PORT = 8883
_MIB = 1 << 20
#: MQTT 5 §1.5.5: the largest remaining length, so the largest packet there can be.
_LARGEST_PACKET = 268_435_455


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Certificates for the connection. The broker's certificate is always checked.

    Attributes:
        ca_file: PEM of the authority that signed the broker's certificate; empty: the system's.
        cert_file: PEM of this client's certificate, when the broker asks for one.
        key_file: PEM of its key.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("tls: cert_file and key_file must be given together")

    def context(self) -> ssl.SSLContext:
        """What the connection is encrypted with (TLS 1.2 or newer, host name checked).

        Raises:
            ConfigError: a file is missing or no PEM; names the file.
        """
        for name in (self.ca_file, self.cert_file, self.key_file):
            if name and not Path(name).is_file():
                raise ConfigError(f"tls: {name} does not exist")
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"tls: ca_file {self.ca_file} is unusable: {error}") from error
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    f"tls: cert_file {self.cert_file} with key_file {self.key_file}"
                    f" is unusable: {error}"
                ) from error
        return context


class BrokerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the broker is and how to talk to it.

    Attributes:
        host: name or address.
        port: 0 takes 1883, or 8883 with `tls`; reads as the port that is used.
        username: empty: no login.
        password_file: file whose first line is the password.
        password_env: environment variable that holds it, instead of a file.
        tls: certificates; without it the connection is plain.
        keepalive_s: silence after which each side asks whether the other is there.
        connect_timeout_s: for the TCP connection and again for the broker's answer.
        max_payload_bytes: larger messages are neither sent nor taken.
        backoff_min_s: first back-off; the wait is random between 0 and the back-off.
        backoff_max_s: it doubles with each failure up to here.
    """

    host: str = "127.0.0.1"
    port: int = 0
    username: str = ""
    password_file: str = ""
    password_env: str = ""
    tls: TlsSettings | None = None
    keepalive_s: int = 30
    connect_timeout_s: float = 5.0
    max_payload_bytes: int = _MIB
    backoff_min_s: float = 0.5
    backoff_max_s: float = 60.0

    def __post_init__(self) -> None:
        if self.port == 0:
            # Read by everyone as the port that is used; "0" is only a way to write "the usual".
            msgspec.structs.force_setattr(self, "port", TLS_PORT if self.tls else PLAIN_PORT)
        if not self.host or any(c.isspace() for c in self.host):
            raise ValueError(f"host must be a name or an address, got {self.host!r}")
        _in_range("port", self.port, 1, 65_535)
        _in_range("keepalive_s", self.keepalive_s, 2, 3600)
        _in_range("connect_timeout_s", self.connect_timeout_s, 0.1, 120)
        _in_range("max_payload_bytes", self.max_payload_bytes, 1024, _LARGEST_PACKET - 1024)
        _in_range("backoff_min_s", self.backoff_min_s, 0.01, 3600)
        _in_range("backoff_max_s", self.backoff_max_s, self.backoff_min_s, 86_400)
        if self.password_file and self.password_env:
            raise ValueError("give password_file or password_env, not both")
        if (self.password_file or self.password_env) and not self.username:
            raise ValueError("a password needs a username")

    def located(self, base: Path) -> BrokerSettings:
        """The same, with files found from the folder `base` of the configuration."""

        def found(name: str) -> str:
            return str(located(name, base)) if name else ""

        tls = self.tls
        if tls is not None:
            tls = TlsSettings(
                ca_file=found(tls.ca_file),
                cert_file=found(tls.cert_file),
                key_file=found(tls.key_file),
            )
        return msgspec.structs.replace(self, password_file=found(self.password_file), tls=tls)

    @property
    def address(self) -> str:
        """`host:port`, as messages name the broker."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def password(self) -> str | None:
        """The password, read now; None when none is configured. Kept nowhere, so in no repr.

        Raises:
            ConfigError: the file or variable is missing or empty; names it.
        """
        if self.password_env:
            return _not_empty(
                os.environ.get(self.password_env, ""),
                f"environment variable {self.password_env} (password_env)",
            )
        if not self.password_file:
            return None
        try:
            text = Path(self.password_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(
                f"password_file {self.password_file} cannot be read: {reason}"
            ) from error
        return _not_empty(
            text.partition("\n")[0].rstrip("\r"), f"password_file {self.password_file}"
        )


def _in_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN, which compares false with everything, is refused too.
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low:g}..{high:g}, got {value:g}")


def _not_empty(secret: str, where: str) -> str:
    if not secret:
        raise ConfigError(f"{where} is empty or not set")
    return secret
