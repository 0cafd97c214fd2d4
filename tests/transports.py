"""Brokers behind every transport that a link can take, on loopback, for tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

import broker.local.embedded
from broker.link.settings import BrokerSettings, TlsSettings
from broker.link.transport_settings import WebSocketSettings
from broker.local.broker import HOST, LocalBroker
from broker.security.certificate_authority import Authority
from tests.ports import free_port, free_ports

#: rumqttd, the embedded broker, told to listen for MQTT 3.1.1 alone.
_OLD_BROKER = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 2
[v4.1]
name = "old"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 0
[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 20971520
max_inflight_count = 100
dynamic_filters = true
"""


@dataclass(frozen=True)
class Transports:
    """One Mosquitto that listens four ways.

    Attributes:
        broker: its process, and the plain listener.
        folder: ca.pem, server.pem, client.pem (certificate and key), all readable.
        tls_port: wants no client certificate.
        mutual_port: TLS that wants one.
        websockets_port: plain WebSockets.
        wss_port: WebSockets in TLS.
    """

    broker: LocalBroker
    folder: Path
    tls_port: int
    mutual_port: int
    websockets_port: int
    wss_port: int

    def settings(self, transport: str) -> BrokerSettings:
        """How to reach it: tcp, 3.1.1, tls, mutual, websockets or wss."""
        quick = BrokerSettings(port=self.broker.port, backoff_min_s=0.05, backoff_max_s=0.2)
        ca, client = str(self.folder / "ca.pem"), str(self.folder / "client.pem")
        tls = TlsSettings(ca_file=ca)
        changes: dict[str, dict[str, object]] = {
            "tcp": {},
            "3.1.1": {"protocol": "3.1.1"},
            "tls": {"port": self.tls_port, "tls": tls},
            "mutual": {
                "port": self.mutual_port,
                "tls": TlsSettings(ca_file=ca, cert_file=client, key_file=client),
            },
            "websockets": {"port": self.websockets_port, "websocket": WebSocketSettings()},
            "wss": {"port": self.wss_port, "tls": tls, "websocket": WebSocketSettings()},
        }
        return msgspec.structs.replace(quick, **changes[transport])


def make_certificates(folder: Path) -> None:
    """ca.pem, server.pem for 127.0.0.1, client.pem; each certificate with its key."""
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    root = Authority.create("tests", now)
    authority = Authority(root.certificate, root.key)
    server = authority.issue("broker", "server", now, 2, [HOST])
    client = authority.issue("client", "client", now, 2)
    (folder / "ca.pem").write_bytes(root.certificate)
    (folder / "server.pem").write_bytes(server.certificate + server.key)
    (folder / "client.pem").write_bytes(client.certificate + client.key)
    for file in folder.iterdir():
        file.chmod(0o644)


@contextmanager
def mosquitto_of_all_transports(folder: Path) -> Iterator[Transports]:
    """It runs while the block lasts, its certificates in `folder`."""
    make_certificates(folder)
    ports = free_ports(4)
    tls = f"cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.pem\n"
    # libwebsockets binds to an address of IPv4 only where it is told to be of IPv4.
    websockets = "protocol websockets\nsocket_domain ipv4\n"
    config = (
        f"listener {ports[0]} {HOST}\n{tls}"
        f"listener {ports[1]} {HOST}\n{tls}require_certificate true\n"
        f"listener {ports[2]} {HOST}\n{websockets}"
        f"listener {ports[3]} {HOST}\n{websockets}{tls}"
    )
    with LocalBroker("mosquitto", extra_config=config) as broker:
        yield Transports(broker, folder, *ports)


@contextmanager
def broker_of_3_1_1(folder: Path) -> Iterator[int]:
    """Port of a broker that has never heard of MQTT 5, and runs while the block lasts."""
    config, port = folder / "broker.toml", free_port()
    config.write_text(_OLD_BROKER.format(port=port))
    command = [sys.executable, "-P", str(Path(broker.local.embedded.__file__)), str(config)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + 15
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
                break
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)
        assert process.stdin is not None
        process.stdin.close()
