"""Out of a closed network: through an HTTP or SOCKS proxy, named in the configuration or not."""

from __future__ import annotations

import builtins
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings
from broker.link.transport_settings import ProxyKind, ProxySettings
from fedge.errors import ConfigError
from tests.conftest import take, wait_down, wait_up
from tests.gateway import Gateway
from tests.ports import free_port
from tests.transports import Transports

_LOGIN = ("pi", "s3cret:word")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mqtt_proxy", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def exchange(link: MqttLink, topic: str) -> None:
    """Up, and a message of several packets of TCP there and back."""
    link.subscribe(topic)
    link.open()
    wait_up(link)
    payload = bytes(range(256)) * 800
    link.publish(topic, payload)
    assert take(link)[0].payload == payload


@pytest.mark.parametrize("kind", ["http", "socks5"])
@pytest.mark.parametrize("transport", ["tcp", "tls", "websockets", "wss"])
def test_every_transport_goes_through_a_proxy(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
    kind: ProxyKind,
    transport: str,
) -> None:
    settings = transports.settings(transport)
    with Gateway() as gateway:
        proxy = ProxySettings(kind=kind, host="127.0.0.1", port=gateway.port)
        settings = msgspec.structs.replace(settings, proxy=proxy)
        links.append(MqttLink(settings, unique("pi"), network=network))
        exchange(links[0], unique("t"))
        assert gateway.asked == [(kind, "127.0.0.1", settings.port)]


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_the_proxy_resolves_the_name_and_requires_a_login(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
    kind: ProxyKind,
    tmp_path: Path,
) -> None:
    (tmp_path / "password").write_text(_LOGIN[1] + "\n")
    with Gateway({"broker.inside": "127.0.0.1"}, _LOGIN) as gateway:
        proxy = ProxySettings(
            kind=kind,
            host="127.0.0.1",
            port=gateway.port,
            username=_LOGIN[0],
            password_file=str(tmp_path / "password"),
        )
        settings = BrokerSettings(host="broker.inside", port=transports.broker.port, proxy=proxy)
        links.append(MqttLink(settings, unique("pi"), network=network))
        exchange(links[0], unique("t"))
        assert gateway.asked[0][:2] == (kind, "broker.inside")


def test_a_refusal_of_the_proxy_names_the_proxy(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATE_PASSWORD", "wr0ng")
    with Gateway(login=_LOGIN) as gateway:
        for kind, words in (("http", "407"), ("socks5", "authentication failed")):
            proxy = ProxySettings(
                kind=kind,  # type: ignore[arg-type]
                host="127.0.0.1",
                port=gateway.port,
                username="pi",
                password_env="GATE_PASSWORD",
            )
            settings = BrokerSettings(port=transports.broker.port, proxy=proxy)
            links.append(MqttLink(settings, unique(kind), network=network))
            links[-1].open()
            reason = wait_down(links[-1]).reason
            assert f"through the {kind} proxy 127.0.0.1:{gateway.port}" in reason
            assert words in reason
            assert "wr0ng" not in reason


def test_an_unreachable_proxy_is_reported(
    network: NetworkLoop, links: list[MqttLink], unique: Callable[[str], str]
) -> None:
    proxy = ProxySettings(host="127.0.0.1", port=free_port())
    links.append(MqttLink(BrokerSettings(proxy=proxy), unique("pi"), network=network))
    links[0].open()
    assert f"through the http proxy 127.0.0.1:{proxy.port}" in wait_down(links[0]).reason


@pytest.mark.parametrize(
    ("variable", "scheme", "transport", "used"),
    [
        ("mqtt_proxy", "http", "tcp", True),
        ("MQTT_PROXY", "socks5", "tls", True),
        ("https_proxy", "http", "wss", True),
        ("http_proxy", "http", "websockets", True),
        ("https_proxy", "http", "tls", False),
        ("http_proxy", "http", "wss", False),
    ],
)
def test_the_environments_proxy_is_used_where_it_applies(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    scheme: str,
    transport: str,
    used: bool,
) -> None:
    with Gateway() as gateway:
        monkeypatch.setenv(variable, f"{scheme}://127.0.0.1:{gateway.port}")
        settings = transports.settings(transport)
        links.append(MqttLink(settings, unique("pi"), network=network))
        exchange(links[0], unique("t"))
        assert bool(gateway.asked) is used


def test_no_proxy_connects_directly(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("mqtt_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    links.append(MqttLink(transports.settings("tcp"), unique("pi"), network=network))
    exchange(links[0], unique("t"))


def test_without_the_extra_it_says_what_to_install(
    links: list[MqttLink], network: NetworkLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_socks(name: str, *rest: Any) -> Any:
        if name == "socks":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_socks)
    settings = BrokerSettings(proxy=ProxySettings(host="gate"))
    links.append(MqttLink(settings, "pi", network=network))
    with pytest.raises(ConfigError, match=r"http proxy gate:8080 .* fedge\[proxy\]"):
        links[0].open()


def test_another_server_at_the_websocket_port_is_reported(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
) -> None:
    plain = msgspec.structs.replace(
        transports.settings("websockets"), port=transports.broker.port, connect_timeout_s=2.0
    )
    links.append(MqttLink(plain, unique("pi"), network=network))
    links[0].open()
    assert "no WebSocket at 127.0.0.1" in wait_down(links[0]).reason
    with socket.create_server(("127.0.0.1", 0)) as server:
        links.append(
            MqttLink(
                msgspec.structs.replace(plain, port=server.getsockname()[1]),
                unique("pi"),
                network=network,
            )
        )
        links[1].open()
        client, _ = server.accept()
        with client:
            client.recv(4096)
            client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            down = wait_down(links[1])
    assert down.refused
    assert "HTTP 404 Not Found: check `path`, /mqtt" in down.reason
