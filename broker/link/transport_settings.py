"""Settings of WebSockets and proxies, and the secrets of both."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import msgspec

from fedge.errors import ConfigError
from fedge.yaml_config import located

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
#: Headers that the WebSocket sets itself, and headers whose values are secrets.
_OUR_HEADERS = ("connection", "upgrade", "host")
_SECRET_HEADERS = ("authorization", "cookie", "proxy-authorization")
_MAX_SECRET_BYTES = 65_536
ProxyKind = Literal["http", "socks5", "socks4"]
_PROXY_PORTS: dict[ProxyKind, int] = {"http": 8080, "socks5": 1080, "socks4": 1080}
_PROXY_SCHEMES: dict[str, ProxyKind] = {
    "http": "http",
    "socks": "socks5",
    "socks5": "socks5",
    "socks5h": "socks5",
    "socks4": "socks4",
}


class WebSocketSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """MQTT inside WebSockets, for networks that let only HTTP(S) out.

    Attributes:
        path: path of the WebSocket's URL.
        headers: further headers of the upgrade request; no secrets.
        headers_file: file with further headers, `Name: value` on each line; may be secret.
    """

    path: str = "/mqtt"
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    headers_file: str = ""

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or not _printable(self.path) or " " in self.path:
            raise ValueError(f"path must be like /mqtt, got {self.path!r}")
        for name, value in self.headers.items():
            _check_header(name, value, "headers")
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"headers: {name} is a secret: put this header into headers_file")

    def located(self, base: Path) -> Self:
        """Returns the settings with the file path relative to the folder `base`."""
        return msgspec.structs.replace(self, headers_file=find(self.headers_file, base))

    def all_headers(self) -> dict[str, str]:
        """Reads the secret headers; returns all headers.

        Raises:
            ConfigError: the file cannot be read, or a line is not a header.
        """
        headers = dict(self.headers)
        if not self.headers_file:
            return headers
        where = f"headers_file {self.headers_file}"
        for number, line in enumerate(_read_text(where, self.headers_file).splitlines(), 1):
            if not line.strip():
                continue
            name, colon, value = line.partition(":")
            try:  # the line is a secret and must not appear in the message
                if not colon:
                    raise ValueError("no `Name: value`")
                _check_header(name.strip(), value.strip(), "")
            except ValueError:
                raise ConfigError(f"{where}: line {number} is not a header") from None
            headers[name.strip()] = value.strip()
        return headers


class ProxySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the proxy before the broker.

    Attributes:
        kind: http (CONNECT), socks5 or socks4.
        host: name or address of the proxy.
        port: 0 means 8080 for http, 1080 for SOCKS; reads as the port in use.
        username: empty: no login.
        password_file: file whose first line is the password.
        password_env: environment variable with the password, instead of a file.
    """

    kind: ProxyKind = "http"
    host: str
    port: int = 0
    username: str = ""
    password_file: str = ""
    password_env: str = ""

    def __post_init__(self) -> None:
        if self.port == 0:
            msgspec.structs.force_setattr(self, "port", _PROXY_PORTS[self.kind])
        check_host(self.host)
        if not 1 <= self.port <= 65_535:
            raise ValueError(f"port must be 1..65535, got {self.port}")
        check_login(self.username, self.password_file, self.password_env)
        if self.kind == "socks4" and (self.password_file or self.password_env):
            raise ValueError("socks4 has no passwords: use socks5")

    def located(self, base: Path) -> Self:
        """Returns the settings with the file path relative to the folder `base`."""
        return msgspec.structs.replace(self, password_file=find(self.password_file, base))

    def open(self) -> OpenProxy:
        """Reads the password; returns the proxy with it.

        Raises:
            ConfigError: the password's file or variable is missing or empty.
        """
        password = read_password(self.password_file, self.password_env, "proxy: ")
        return OpenProxy(
            kind=self.kind,
            host=self.host,
            port=self.port,
            username=self.username,
            password=password or "",
        )


class OpenProxy(msgspec.Struct, frozen=True, kw_only=True):
    """Proxy with its login.

    Attributes:
        origin: environment variable that names the proxy; empty: a configuration file does.
    """

    kind: ProxyKind
    host: str
    port: int
    username: str = ""
    password: str = ""
    origin: str = ""

    def __repr__(self) -> str:  # the password must not appear in a log
        return f"OpenProxy({self.words})"

    @property
    def words(self) -> str:
        """Name of the proxy in messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        named = f" ({self.origin})" if self.origin else ""
        return f"{self.kind} proxy {host}:{self.port}{named}"


def proxy_of_environment(
    host: str, schemes: tuple[str, ...], environment: Mapping[str, str]
) -> OpenProxy | None:
    """Returns the proxy that `<scheme>_proxy` names, unless `no_proxy` lists the host.

    Args:
        host: the broker's host.
        schemes: schemes to look for; the first one with a variable applies.
        environment: environment variables of the process.

    Raises:
        ConfigError: the variable does not name a supported proxy.
    """
    proxies = {
        name.lower()[: -len("_proxy")]: (name, value)
        for name, value in sorted(environment.items())
        if name.lower().endswith("_proxy") and value
    }
    known = {scheme: value for scheme, (_, value) in proxies.items()}
    if urllib.request.proxy_bypass_environment(host, known):  # type: ignore[attr-defined]
        return None
    for scheme in schemes:
        if scheme in proxies:
            return _parse_proxy(*proxies[scheme])
    return None


def _parse_proxy(name: str, value: str) -> OpenProxy:
    # The value may hold a password, so no message shows it.
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"environment variable {name} is not the address of a proxy") from error
    kind = _PROXY_SCHEMES.get(parts.scheme)
    if kind is None or not parts.hostname:
        known = ", ".join(f"{scheme}://" for scheme in _PROXY_SCHEMES)
        raise ConfigError(
            f"environment variable {name} must begin with one of {known} and name a host"
        )
    return OpenProxy(
        kind=kind,
        host=parts.hostname,
        port=port or _PROXY_PORTS[kind],
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        origin=name,
    )


def proxy_arguments(proxy: OpenProxy) -> dict[str, Any]:
    """Returns the arguments of paho's `proxy_set`; the proxy resolves the broker's name.

    Raises:
        ConfigError: PySocks is not installed.
    """
    try:
        import socks
    except ImportError as error:
        raise ConfigError(
            f"the {proxy.words} needs PySocks: install fedge with its extra, fedge[proxy]"
        ) from error
    kinds = {"http": socks.HTTP, "socks5": socks.SOCKS5, "socks4": socks.SOCKS4}
    return {
        "proxy_type": kinds[proxy.kind],
        "proxy_addr": proxy.host,
        "proxy_port": proxy.port,
        "proxy_rdns": True,
        "proxy_username": proxy.username or None,
        "proxy_password": proxy.password or None,
    }


def find(name: str, base: Path) -> str:
    """Returns `name` relative to the configuration's folder `base`; empty stays empty."""
    return str(located(name, base)) if name else ""


def check_host(host: str) -> None:
    """Raises ValueError unless `host` is a name or an address; refuses URLs and `name:port`."""
    if not host or any(c.isspace() or c in "/@[]" for c in host) or host.count(":") == 1:
        _, login, name = host.rpartition("@")
        shown = "…@" + name if login else name  # hides a password before the name
        raise ValueError(
            f"host must be a name or an address, without scheme, login or port, got {shown!r}"
        )


def check_login(username: str, password_file: str, password_env: str) -> None:
    """Raises ValueError for two passwords, or a password without a user name."""
    if password_file and password_env:
        raise ValueError("give password_file or password_env, not both")
    if (password_file or password_env) and not username:
        raise ValueError("a password needs a username")


def read_password(password_file: str, password_env: str, where: str = "") -> str | None:
    """Reads the password; None when none is configured.

    Raises:
        ConfigError: the file or variable is missing or empty.
    """
    if password_env:
        return _not_empty(
            os.environ.get(password_env, ""),
            f"{where}environment variable {password_env} (password_env)",
        )
    if not password_file:
        return None
    where = f"{where}password_file {password_file}"
    return _not_empty(_read_text(where, password_file).partition("\n")[0].rstrip("\r"), where)


def _read_text(where: str, path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return file.read(_MAX_SECRET_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{where} cannot be read: {reason}") from error


def _not_empty(secret: str, where: str) -> str:
    if not secret:
        raise ConfigError(f"{where} is empty or not set")
    return secret


def _check_header(name: str, value: str, where: str) -> None:
    if not _TOKEN.fullmatch(name) or not _printable(value):
        raise ValueError(f"{where}: {name!r} is not a valid header")
    if name.lower() in _OUR_HEADERS or name.lower().startswith("sec-websocket-"):
        raise ValueError(f"{where}: {name} is set by the WebSocket itself")


def _printable(text: str) -> bool:
    return text.isascii() and (not text or text.isprintable())
