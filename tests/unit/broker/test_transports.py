"""What an operator writes about WebSockets and proxies, and what of it is secret."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from broker.link.settings import BrokerSettings, TlsSettings
from broker.link.transport_settings import WebSocketSettings, proxy_of_environment
from fedge.errors import ConfigError
from fedge.yaml_config import parse_config


def parse(**keys: Any) -> BrokerSettings:
    return parse_config(keys, BrokerSettings, "agent.yaml", key="broker")


def test_the_usual_ports_follow_the_transport() -> None:
    web = WebSocketSettings()
    assert BrokerSettings(websocket=web).port == 80
    assert BrokerSettings(websocket=web, tls=TlsSettings()).port == 443
    assert BrokerSettings(tls=TlsSettings()).port == 8883


def test_nothing_below_tls_1_2_is_spoken() -> None:
    assert TlsSettings().context().minimum_version >= ssl.TLSVersion.TLSv1_2


def test_version_5_may_be_written_as_a_number() -> None:
    assert parse(protocol=5).protocol == "5"
    assert parse(protocol="3.1.1").protocol == "3.1.1"
    with pytest.raises(ConfigError, match=r"one of: auto, 5, 3\.1\.1, got 4"):
        parse(protocol=4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"websocket": {"path": "mqtt"}}, "path must be like /mqtt"),
        ({"websocket": {"path": "/a\r\nX: y"}}, "path must be like /mqtt"),
        (
            {"websocket": {"headers": {"Authorization": "Bearer x"}}},
            "into headers_file",
        ),
        ({"websocket": {"headers": {"X": "a\r\nY: b"}}}, "is not a valid header"),
        ({"websocket": {"headers": {"Host": "x"}}}, "set by the WebSocket itself"),
        ({"proxy": {"kind": "https", "host": "p"}}, "one of: http, socks5, socks4"),
        ({"proxy": {"host": "p", "password_env": "X"}}, "a password needs a username"),
        ({"proxy": {"host": "p", "port": 70_000}}, r"port must be 1\.\.65535"),
        (
            {"proxy": {"kind": "socks4", "host": "p", "username": "u", "password_env": "X"}},
            "socks4 has no passwords",
        ),
    ],
)
def test_an_invalid_setting_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**keys)


def test_secret_headers_come_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("Authorization: Bearer abc:def\n\nX-Two:  2 \n")
    settings = parse(websocket={"headers": {"X-Site": "n"}, "headers_file": "headers"})
    secrets = settings.located(tmp_path).secrets()
    assert secrets.headers == {"X-Site": "n", "Authorization": "Bearer abc:def", "X-Two": "2"}
    assert "abc" not in f"{secrets!r} {settings!r} {secrets}"


def test_a_damaged_line_of_secret_headers_is_named_by_number_only(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("X: 1\ntopsecret\n")
    settings = parse(websocket={"headers_file": "headers"}).located(tmp_path)
    with pytest.raises(ConfigError, match="headers: line 2 is not a header") as caught:
        settings.secrets()
    assert "topsecret" not in str(caught.value)


def test_a_header_of_a_wrong_type_is_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"headers\.X-Key: .* got a int") as caught:
        parse(websocket={"headers": {"X-Key": 4711}})
    assert "4711" not in str(caught.value)


def test_the_proxys_password_is_read_at_connection_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parse(proxy={"host": "gate", "username": "u", "password_env": "GATE_PASSWORD"})
    with pytest.raises(ConfigError, match="proxy: environment variable GATE_PASSWORD"):
        settings.secrets()
    monkeypatch.setenv("GATE_PASSWORD", "topsecret")
    proxy = settings.secrets().proxy
    assert proxy is not None
    assert (proxy.password, proxy.port) == ("topsecret", 8080)
    assert "topsecret" not in f"{proxy!r} {proxy} {settings!r} {settings.secrets()!r}"


@pytest.mark.parametrize(
    ("environment", "schemes", "expected"),
    [
        ({}, ("mqtt",), None),
        ({"https_proxy": "http://gate:3128"}, ("mqtt",), None),
        ({"https_proxy": "http://gate:3128"}, ("mqtt", "https"), "http proxy gate:3128"),
        ({"HTTPS_PROXY": "gate"}, ("mqtt", "https"), "http proxy gate:8080"),
        ({"mqtt_proxy": "socks://gate"}, ("mqtt", "https"), "socks5 proxy gate:1080"),
        ({"mqtt_proxy": "socks5h://u:p%40ss@[::1]:99"}, ("mqtt",), "socks5 proxy [::1]:99"),
        ({"https_proxy": "http://gate", "no_proxy": ".example.org"}, ("mqtt", "https"), None),
        ({"mqtt_proxy": "http://gate", "NO_PROXY": "*"}, ("mqtt",), None),
        ({"mqtt_proxy": ""}, ("mqtt",), None),
    ],
)
def test_the_proxy_is_taken_from_the_environment(
    environment: dict[str, str], schemes: tuple[str, ...], expected: str | None
) -> None:
    proxy = proxy_of_environment("broker.example.org", schemes, environment)
    assert (proxy.words.partition(" (")[0] if proxy else None) == expected


@pytest.mark.parametrize(
    "value", ["https://u:topsecret@gate", "ftp://gate", "http://:topsecret@", "http://gate:99999"]
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(value: str) -> None:
    with pytest.raises(ConfigError, match="environment variable mqtt_proxy") as caught:
        proxy_of_environment("broker.example.org", ("mqtt",), {"mqtt_proxy": value})
    assert "topsecret" not in str(caught.value)
