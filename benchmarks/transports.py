"""What a transport costs: a round, small and large messages, bytes, connecting, an agent's memory.

    python benchmarks/transports.py [--repeats 3] [--rounds 8] [--clients 60] [--json] [--save]

One Mosquitto on loopback listens for all of them; every repeat goes through all transports in turn.
A round is that of a real federation (house_price, three agent processes, whose steps take
microseconds); the first of each, in which agents load the model, does not count. An agent's memory
is VmRSS when the last round is over. Messages are between two links of this process; bytes are what
the kernel counts for the sending connection (TCP_INFO), beside those of the PUBLISH packets.
Connecting is from `open` to subscribed, one client after the other and all at once.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from measure import Report, finish, option_parser, shown, spread
from small_federation import run_rounds

from broker.link import sockets
from broker.link.link import LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings
from broker.local.broker import HOST, LocalBroker, free_port
from broker.security.certificate_authority import Authority

ROOT = Path(__file__).resolve().parent.parent
AGENTS = 3
PATIENCE_S = 60.0
UPDATE_BYTES, CHUNK_BYTES = 10_500, 120 << 10
TRANSPORTS = {
    "tcp": "TCP",
    "3.1.1": "TCP, MQTT 3.1.1",
    "tls": "TLS",
    "mutual": "TLS, client cert.",
    "websockets": "WebSockets",
    "wss": "WebSockets in TLS",
}


def make_broker(folder: Path) -> tuple[LocalBroker, dict[str, dict[str, Any]]]:
    """Mosquitto, and the keys of `broker` for each transport."""
    now = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    root = Authority.create("benchmark", now)
    authority = Authority(root.certificate, root.key)
    (folder / "ca.pem").write_bytes(root.certificate)
    for name, purpose, hosts in (("server", "server", [HOST]), ("client", "client", [])):
        issued = authority.issue(name, purpose, now, 2, hosts)  # type: ignore[arg-type]
        (folder / f"{name}.pem").write_bytes(issued.certificate + issued.key)
    for file in folder.iterdir():
        file.chmod(0o644)
    tls, mutual, websockets, wss = (free_port() for _ in range(4))
    files = f"cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.pem\n"
    web = "protocol websockets\nsocket_domain ipv4\n"
    config = (
        f"listener {tls} {HOST}\n{files}listener {mutual} {HOST}\n{files}require_certificate true\n"
        f"listener {websockets} {HOST}\n{web}listener {wss} {HOST}\n{web}{files}"
    )
    broker = LocalBroker("mosquitto", free_port(), extra_config=config)
    ca = {"ca_file": str(folder / "ca.pem")}
    own = {name: str(folder / "client.pem") for name in ("cert_file", "key_file")}
    return broker, {
        "tcp": {"port": broker.port},
        "3.1.1": {"port": broker.port, "protocol": "3.1.1"},
        "tls": {"port": tls, "tls": ca},
        "mutual": {"port": mutual, "tls": ca | own},
        "websockets": {"port": websockets, "websocket": {}},
        "wss": {"port": wss, "websocket": {}, "tls": ca},
    }


# --- a round --------------------------------------------------------------------------------------


def federation(folder: Path, broker: dict[str, Any], rounds: int) -> Report:
    """A round's milliseconds, and the memory of an agent."""
    records, memory = run_rounds(folder, broker, AGENTS, rounds)
    return {
        "round_ms": statistics.median(record["seconds"] for record in records) * 1e3,
        "agent_mib": statistics.median(memory),
    }


# --- messages and connections ---------------------------------------------------------------------


def settings_of(broker: dict[str, Any]) -> BrokerSettings:
    return msgspec.convert(broker, BrokerSettings)


def up(link: MqttLink) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if isinstance(link.poll(1), LinkUp):
            return
    raise RuntimeError("a link did not come up")


def take(link: MqttLink, count: int) -> None:
    while count:
        event = link.poll(PATIENCE_S)
        if event is None:
            raise RuntimeError(f"{count} messages did not come")
        count -= isinstance(event, Received)


def tcp_bytes(link: MqttLink) -> int:
    """Sent and acknowledged on the connection (tcp_info.tcpi_bytes_acked of Linux)."""
    sock: Any = link._connection._driver.client.socket()
    info = sockets.tcp_of(sock).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(info[120:128], sys.byteorder)


def messages(broker: dict[str, Any], network: NetworkLoop) -> Report:
    """Small and large messages from one link to another and back."""
    settings = settings_of(broker)
    one, two = (MqttLink(settings, f"bench-{n}", network=network) for n in "ab")
    for link, own in ((one, "t/a"), (two, "t/b")):
        link.subscribe(own)
        link.open()
        up(link)
    started = time.perf_counter()
    for _ in range(100):
        one.publish("t/b", bytes(200))
        take(two, 1)
        two.publish("t/a", bytes(200))
        take(one, 1)
    there_and_back_ms = (time.perf_counter() - started) * 10
    rates = {}
    for name, sender, receiver, topic in (("up", one, two, "t/b"),):
        before = sender.counters.up, tcp_bytes(sender)
        for _ in range(100):
            sender.publish(topic, os.urandom(UPDATE_BYTES))
        take(receiver, 100)
        time.sleep(0.3)  # the last acknowledgement of TCP
        publish, wire = sender.counters.up - before[0], tcp_bytes(sender) - before[1]
        rates[f"{name}_wire_percent"] = (wire / publish - 1) * 100
    payload = os.urandom(CHUNK_BYTES)
    started = time.perf_counter()
    for _ in range(200):
        one.publish("t/b", payload)
    take(two, 200)
    rates["mb_per_s"] = 200 * CHUNK_BYTES / 1e6 / (time.perf_counter() - started)
    one.close()
    two.close()
    return {"there_and_back_ms": there_and_back_ms, **rates}


def connecting(broker: dict[str, Any], clients: int, network: NetworkLoop) -> Report:
    """Clients a second, one after the other and all at once."""
    settings = settings_of(broker)

    def client(number: int) -> MqttLink:
        link = MqttLink(settings, f"bench-c{number}", network=network, session_expiry_s=0)
        link.subscribe("t/c")
        link.open()
        return link

    started = time.perf_counter()
    links = []
    for number in range(clients):
        links.append(client(number))
        up(links[-1])
    one_by_one = clients / (time.perf_counter() - started)
    for link in links:
        link.abort()
    started = time.perf_counter()
    links = [client(clients + number) for number in range(clients)]
    for link in links:
        up(link)
    at_once = clients / (time.perf_counter() - started)
    for link in links:
        link.abort()
    return {"connects_one_by_one": one_by_one, "connects_at_once": at_once}


def measure(repeats: int, rounds: int, clients: int) -> Report:
    found: dict[str, list[Report]] = {kind: [] for kind in TRANSPORTS}
    with tempfile.TemporaryDirectory(prefix="transports-") as name, NetworkLoop() as network:
        folder = Path(name)
        folder.chmod(0o755)
        broker, ways = make_broker(folder)
        with broker:
            for number in range(repeats):
                for kind, way in ways.items():
                    own = folder / f"{kind.replace('.', '')}-{number}"
                    own.mkdir()
                    found[kind].append(
                        federation(own, way, rounds)
                        | messages(way, network)
                        | connecting(way, clients, network)
                    )
    return {
        kind: {key: spread(row[key] for row in rows) for key in rows[0]}
        for kind, rows in found.items()
    }


def show(report: Report) -> None:
    rows = {
        "round_ms": "a round, ms",
        "there_and_back_ms": "200 bytes there and back, ms",
        "mb_per_s": "120 KiB messages, MB/s",
        "up_wire_percent": "TCP bytes beyond PUBLISH, %",
        "connects_one_by_one": "connects a second, one by one",
        "connects_at_once": "connects a second, at once",
        "agent_mib": "agent, MiB",
    }
    for key, what in rows.items():
        print(what)
        for kind, name in TRANSPORTS.items():
            print(f"    {name:<20}{shown(report[kind][key], digits=2):>28}")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8, help="of each federation")
    parser.add_argument("--clients", type=int, default=60, help="that connect")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    report = measure(options.repeats, options.rounds, options.clients)
    report["budgets"] = []
    finish("transports", report, options, show)


if __name__ == "__main__":
    main()
