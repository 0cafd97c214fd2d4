"""How to reach a broker: what an operator writes under `broker:` in a configuration file."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Literal

import msgspec

from broker.link.transport_settings import (
    OpenProxy,
    ProxySettings,
    WebSocketSettings,
    check_host,
    check_login,
    find,
    proxy_of_environment,
    read_password,
)
from fedge.errors import ConfigError

PLAIN_PORT = 1883
TLS_PORT = 8883
HTTP_PORT = 80
HTTPS_PORT = 443
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
            ConfigError: a file is missing, not readable, no PEM, or an encrypted key; names it.
        """
        for name in filter(None, (self.ca_file, self.cert_file, self.key_file)):
            _check_readable(name)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"tls: ca_file {self.ca_file} is unusable: {error}") from error
        if self.cert_file:
            try:
                # Without this OpenSSL would ask for a passphrase, whoever sits there or not.
                context.load_cert_chain(self.cert_file, self.key_file, self._no_passphrase)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    f"tls: cert_file {self.cert_file} with key_file {self.key_file}"
                    f" is unusable: {error}"
                ) from error
        return context

    def _no_passphrase(self) -> str:
        raise ConfigError(
            f"tls: key_file {self.key_file} is encrypted, and nobody is there to open it: "
            "write it without a passphrase (openssl pkey -in OLD -out NEW), readable by this "
            "service alone"
        )


def _check_readable(name: str) -> None:
    try:
        with Path(name).open("rb"):
            pass
    except FileNotFoundError as error:
        raise ConfigError(f"tls: {name} does not exist") from error
    except OSError as error:
        raise ConfigError(f"tls: {name} cannot be read: {error.strerror}") from error


class BrokerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the broker is and how to talk to it.

    Attributes:
        host: name or address.
        port: 0 takes 1883, or 8883 with `tls`, with `websocket` 80 or 443; reads as the port that
            is used.
        protocol: version of MQTT; auto asks for 5 and takes 3.1.1 from a broker that knows no 5.
        username: empty: no login.
        password_file: file whose first line is the password.
        password_env: environment variable that holds it, instead of a file.
        tls: certificates; without it the connection is plain.
        websocket: MQTT inside WebSockets; without it directly over TCP or TLS.
        proxy: that leads to the broker; without it the environment's variables count.
        keepalive_s: silence after which each side asks whether the other is there.
        connect_timeout_s: for the TCP connection and again for the broker's answer.
        max_payload_bytes: larger messages are neither sent nor taken.
        backoff_min_s: first back-off; the wait is random between 0 and the back-off.
        backoff_max_s: it doubles with each failure up to here.
    """

    host: str = "127.0.0.1"
    port: int = 0
    protocol: Literal["auto", "5", "3.1.1", 5] = "auto"
    username: str = ""
    password_file: str = ""
    password_env: str = ""
    tls: TlsSettings | None = None
    websocket: WebSocketSettings | None = None
    proxy: ProxySettings | None = None
    keepalive_s: int = 30
    connect_timeout_s: float = 5.0
    max_payload_bytes: int = _MIB
    backoff_min_s: float = 0.5
    backoff_max_s: float = 60.0

    def __post_init__(self) -> None:
        if self.port == 0:
            # Read by everyone as the port that is used; "0" is only a way to write "the usual".
            msgspec.structs.force_setattr(self, "port", self._usual_port())
        if self.protocol == 5:  # so YAML reads it
            msgspec.structs.force_setattr(self, "protocol", "5")
        check_host(self.host)
        _in_range("port", self.port, 1, 65_535)
        _in_range("keepalive_s", self.keepalive_s, 2, 3600)
        _in_range("connect_timeout_s", self.connect_timeout_s, 0.1, 120)
        _in_range("max_payload_bytes", self.max_payload_bytes, 1024, _LARGEST_PACKET - 1024)
        _in_range("backoff_min_s", self.backoff_min_s, 0.01, 3600)
        _in_range("backoff_max_s", self.backoff_max_s, self.backoff_min_s, 86_400)
        check_login(self.username, self.password_file, self.password_env)

    def _usual_port(self) -> int:
        if self.websocket is None:
            return TLS_PORT if self.tls else PLAIN_PORT
        return HTTPS_PORT if self.tls else HTTP_PORT

    def located(self, base: Path) -> BrokerSettings:
        """The same, with files found from the folder `base` of the configuration."""

        tls = self.tls
        if tls is not None:
            tls = TlsSettings(
                ca_file=find(tls.ca_file, base),
                cert_file=find(tls.cert_file, base),
                key_file=find(tls.key_file, base),
            )
        return msgspec.structs.replace(
            self,
            password_file=find(self.password_file, base),
            tls=tls,
            websocket=self.websocket and self.websocket.located(base),
            proxy=self.proxy and self.proxy.located(base),
        )

    @property
    def address(self) -> str:
        """`host:port`, as messages name the broker."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def secrets(self) -> Secrets:
        """What nobody but the broker and the way to it may see, read now.

        Raises:
            ConfigError: a file or variable is missing or empty; names it.
        """
        return Secrets(
            password=read_password(self.password_file, self.password_env),
            headers=self.websocket.all_headers() if self.websocket else {},
            proxy=self.proxy.open() if self.proxy else self._proxy_of_environment(),
        )

    def _proxy_of_environment(self) -> OpenProxy | None:
        schemes = ["mqtt"]
        if self.websocket is not None:
            schemes.append("https" if self.tls else "http")
        return proxy_of_environment(self.host, tuple(schemes), os.environ)


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Kept by the connection only; shows nothing of itself.

    Attributes:
        password: of the broker; None: none.
        headers: of the WebSocket's first request.
        proxy: that leads to the broker, with its password.
    """

    password: str | None = None
    headers: dict[str, str] = {}
    proxy: OpenProxy | None = None

    def __repr__(self) -> str:
        return "Secrets(...)"


def _in_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN, which compares false with everything, is refused too.
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low:g}..{high:g}, got {value:g}")
