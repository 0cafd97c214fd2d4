"""Settings of the connection to a broker: section `broker:` of a configuration file."""

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
#: MQTT 5 §1.5.5: the largest remaining length.
_LARGEST_PACKET = 268_435_455


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Certificate files of the connection. The broker's certificate is always verified.

    Attributes:
        ca_file: PEM of the authority that signed the broker's certificate; empty: the system's.
        cert_file: PEM of this client's certificate, if the broker requires one.
        key_file: PEM of its key.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("tls: cert_file and key_file must be given together")

    def context(self) -> ssl.SSLContext:
        """Returns the TLS context (TLS 1.2 or newer, host name verified).

        Raises:
            ConfigError: a file is missing, unreadable, not PEM, or an encrypted key.
        """
        for name in filter(None, (self.ca_file, self.cert_file, self.key_file)):
            _check_readable(name)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"tls: ca_file {self.ca_file} is unusable: {error}") from error
        if self.cert_file:
            try:
                # Without this callback OpenSSL would ask for a passphrase on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, self._no_passphrase)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    f"tls: cert_file {self.cert_file} with key_file {self.key_file}"
                    f" is unusable: {error}"
                ) from error
        return context

    def _no_passphrase(self) -> str:
        raise ConfigError(
            f"tls: key_file {self.key_file} is encrypted; a service cannot ask for a passphrase:"
            " write the key without one (openssl pkey -in OLD -out NEW), readable by this service"
            " only"
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
    """Settings of the connection to a broker.

    Attributes:
        host: name or address.
        port: 0 means 1883, or 8883 with `tls`; with `websocket` 80 or 443. Reads as the used port.
        protocol: version of MQTT; auto: 5, or 3.1.1 if the broker does not know 5.
        username: empty: no login.
        password_file: file whose first line is the password.
        password_env: environment variable with the password, instead of a file.
        tls: certificate files; None: no encryption.
        websocket: MQTT inside WebSockets; None: MQTT directly over TCP or TLS.
        proxy: proxy before the broker; None: the environment variables apply.
        keepalive_s: silence after which the client pings the broker.
        connect_timeout_s: limit of the TCP connection, and again of the broker's answer.
        max_payload_bytes: larger messages are neither sent nor received.
        backoff_min_s: first back-off; the wait is random between 0 and the back-off.
        backoff_max_s: limit of the back-off, which doubles with each failure.
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
            # Readers see the port in use; 0 is only a way to write the default port.
            msgspec.structs.force_setattr(self, "port", self._usual_port())
        if self.protocol == 5:  # YAML reads `protocol: 5` as a number
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
        """Returns the settings with file paths relative to the configuration's folder `base`."""
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
        """`host:port`, the broker's name in messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def secrets(self) -> Secrets:
        """Reads passwords and secret headers from their files and variables.

        Raises:
            ConfigError: a file or variable is missing or empty.
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
    """Secrets of a connection; `repr` shows none of them.

    Attributes:
        password: password at the broker; None: none.
        headers: headers of the WebSocket's upgrade request.
        proxy: proxy with its password.
    """

    password: str | None = None
    headers: dict[str, str] = {}
    proxy: OpenProxy | None = None

    def __repr__(self) -> str:
        return "Secrets(...)"


def _in_range(name: str, value: float, low: float, high: float) -> None:
    # In this form it refuses NaN too, which compares false with every number.
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low:g}..{high:g}, got {value:g}")
