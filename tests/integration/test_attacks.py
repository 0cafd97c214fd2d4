"""What a fleet's broker refuses: a real Mosquitto with the generated configuration, attacked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml

from broker.access import PID_FILE
from broker.authority import Authority
from broker.bundle import Bundle
from broker.local import answers
from broker.mqtt import MqttLink
from broker.reload import reload_mosquitto
from broker.security import utc_now
from broker.settings import BrokerSettings, TlsSettings
from broker.topics import Topics
from models.errors import WireError
from tests.conftest import need, take, wait_down, wait_up
from tests.integration.fleet_folder import (
    FEDERATION,
    NOT_AUTHORISED,
    ROOT,
    Client,
    RunningFleet,
    context_of,
    make_fleet,
    running,
    until,
)

pytestmark = pytest.mark.mosquitto

REPOSITORY = Path(__file__).parents[2]
Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """A running fleet of alice, who is honest, and mallory, who is not."""
    need("mosquitto")
    folder = tmp_path_factory.mktemp("fleet")
    fleet = make_fleet(folder / "fleet")
    with running(fleet, folder) as place:
        for name in ("alice", "mallory"):
            place.device(name)
        assert "has been told" in reload_mosquitto(fleet.broker_folder / PID_FILE)
        yield place


@pytest.fixture
def connect(place: RunningFleet) -> Iterator[Connect]:
    """Connects as someone of the fleet; everyone is sent home at the end of the test."""
    with ExitStack() as stack:

        def as_someone(name: str, client_id: str = "") -> Client:
            client = Client(place.port, context_as(place, name), client_id or name).connect()
            stack.callback(client.close)
            return client

        yield as_someone


def context_as(place: RunningFleet, name: str) -> ssl.SSLContext:
    if name == "coordinator":
        folder, identity = place.fleet.folder / "coordinator", "coordinator.pem"
    else:
        folder, identity = place.devices / name, "agent.pem"
    return context_of(folder / "ca.crt", folder / identity)


def reload(place: RunningFleet) -> None:
    """SIGHUP, and wait until Mosquitto has read its files."""
    before = place.said().count("Reloading config")
    assert "has been told" in reload_mosquitto(place.fleet.broker_folder / PID_FILE)
    assert until(lambda: place.said().count("Reloading config") > before), place.said()


# --- who gets in ----------------------------------------------------------------------------------


def link_with(place: RunningFleet, ca: Path, identity: Path | None, port: int = 0) -> MqttLink:
    file = str(identity or "")
    tls = TlsSettings(ca_file=str(ca), cert_file=file, key_file=file)
    settings = BrokerSettings(port=port or place.port, tls=tls, backoff_min_s=0.05)
    return MqttLink(settings, "fedge-houses-mallory")


def why_refused(place: RunningFleet, identity: Path | None, ca: Path | None = None) -> str:
    link = link_with(place, ca or place.devices / "alice" / "ca.crt", identity)
    try:
        link.open()
        down = wait_down(link)
        assert down.refused
        return down.reason
    finally:
        link.abort()


def signed(place: RunningFleet, folder: Path, name: str, days_ago: int, days: int) -> Path:
    """A client certificate that this fleet's authority signed some days ago."""
    authority = place.fleet.folder / "authority"
    root = Authority((authority / "ca.crt").read_bytes(), (authority / "ca.key").read_bytes())
    issued = root.issue(name, "client", utc_now() - timedelta(days=days_ago), days)
    path = folder / "identity.pem"
    path.write_bytes(issued.certificate + issued.key)
    return path


def test_without_a_certificate_nobody_gets_in(place: RunningFleet) -> None:
    assert "it wants one" in why_refused(place, None)
    assert "peer did not return a certificate" in place.said()


def test_without_tls_nobody_gets_in(place: RunningFleet) -> None:
    assert not answers(place.port)


def test_a_certificate_of_another_authority_is_refused(place: RunningFleet, tmp_path: Path) -> None:
    now = utc_now()
    foreign = Authority.create(FEDERATION, now)
    issued = Authority(foreign.certificate, foreign.key).issue("alice", "client", now, 5)
    identity = tmp_path / "identity.pem"
    identity.write_bytes(issued.certificate + issued.key)
    assert "another authority" in why_refused(place, identity)


def test_a_device_of_another_fleet_is_refused_and_refuses_us(
    place: RunningFleet, tmp_path: Path
) -> None:
    other = RunningFleet(make_fleet(tmp_path / "other", 1), tmp_path / "devices", tmp_path)
    theirs = other.device("alice")
    assert "another authority" in why_refused(place, theirs / "agent.pem")
    reason = why_refused(place, theirs / "agent.pem", theirs / "ca.crt")
    assert "is that this fleet's authority?" in reason


@pytest.mark.parametrize(
    ("days_ago", "days", "words"), [(10, 5, "expired"), (-10, 5, "not yet valid")]
)
def test_a_certificate_counts_in_its_time_only(
    place: RunningFleet, tmp_path: Path, days_ago: int, days: int, words: str
) -> None:
    reason = why_refused(place, signed(place, tmp_path, "alice", days_ago, days))
    assert words in reason
    assert "by the broker's clock" in reason


def test_the_broker_s_own_certificate_is_not_one_for_clients(
    place: RunningFleet, tmp_path: Path
) -> None:
    folder = place.fleet.broker_folder
    identity = tmp_path / "identity.pem"
    names = ("server.crt", "server.key")
    identity.write_bytes(b"".join((folder / name).read_bytes() for name in names))
    assert "not one for clients" in why_refused(place, identity)


def test_a_device_cannot_pose_as_the_broker(place: RunningFleet) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.devices / "mallory" / "agent.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        folder = place.devices / "alice"
        port = server.getsockname()[1]
        link = link_with(place, folder / "ca.crt", folder / "agent.pem", port)
        link.open()
        down = wait_down(link)
        link.abort()
        thread.join(5)
    assert down.refused
    assert "is not trusted" in down.reason


@pytest.mark.parametrize("name", ["+", "#", "mallory/../alice", "agents/alice", "coordinator/x"])
def test_a_certificate_with_a_strange_name_opens_nothing(
    place: RunningFleet, tmp_path: Path, name: str
) -> None:
    """Should the authority's key ever sign one: rules are literal, and there is none for it."""
    identity = signed(place, tmp_path, name, 0, 5)
    client = Client(place.port, context_of(place.devices / "alice" / "ca.crt", identity))
    try:
        client.connect()
        for tail in ("agents/alice/updates/1/0", "coordinator/status", f"agents/{name}/status"):
            with suppress(ValueError):  # paho publishes no wildcards
                assert client.publish(ROOT + tail) == NOT_AUTHORISED
        assert client.publish(f"{ROOT}round") == NOT_AUTHORISED
    finally:
        client.close()


# --- who may write what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tail",
    [
        *("agents/alice/status", "agents/alice/updates/1/0", "agents/alice/reports/1"),
        *("agents/mallory/updates/1", "agents/mallory/updates/1/0/0", "agents/mallory/reports/1/0"),
    ],
)
def test_a_device_writes_in_nobody_else_s_name(connect: Connect, tail: str) -> None:
    coordinator, alice, mallory = connect("coordinator"), connect("alice"), connect("mallory")
    coordinator.subscribe(*Topics(FEDERATION).from_agents)
    assert mallory.publish(ROOT + tail) == NOT_AUTHORISED
    assert alice.publish(f"{ROOT}agents/alice/updates/1/0", b"honest") == 0
    assert coordinator.heard() == [(f"{ROOT}agents/alice/updates/1/0", b"honest")]


@pytest.mark.parametrize(
    "tail",
    [
        *("coordinator/status", "program", "round", f"blobs/{'0' * 64}/0"),
        *("agents/alice/inbox", "agents/mallory/inbox"),
    ],
)
def test_a_device_writes_nothing_of_the_coordinator_s(connect: Connect, tail: str) -> None:
    coordinator, alice, mallory = connect("coordinator"), connect("alice"), connect("mallory")
    alice.subscribe(f"{ROOT}coordinator/status", f"{ROOT}program", f"{ROOT}round")
    alice.subscribe(f"{ROOT}blobs/+/+", f"{ROOT}agents/alice/inbox")
    assert mallory.publish(ROOT + tail, retain=True) == NOT_AUTHORISED
    assert coordinator.publish(f"{ROOT}program", b"genuine") == 0
    assert alice.heard() == [(f"{ROOT}program", b"genuine")]


def test_a_device_writes_into_no_other_federation(connect: Connect) -> None:
    mallory = connect("mallory")
    assert mallory.publish("fedge/v1/flats/agents/mallory/status") == NOT_AUTHORISED
    assert mallory.publish("anything/else") == NOT_AUTHORISED


def test_a_device_leaves_no_will_in_another_s_name(place: RunningFleet, connect: Connect) -> None:
    coordinator = connect("coordinator")
    coordinator.subscribe(f"{ROOT}agents/+/status")
    for name in ("alice", "mallory"):  # its own will is the proof that wills are heard
        client = Client(place.port, context_as(place, "mallory"))
        client.paho.will_set(f"{ROOT}agents/{name}/status", b"offline", 1, retain=False)
        client.connect()
        dead = client.paho.socket()
        assert isinstance(dead, socket.socket)
        dead.shutdown(socket.SHUT_RDWR)
        client.paho.loop_stop()
    assert coordinator.heard(0.4) == [(f"{ROOT}agents/mallory/status", b"offline")]


# --- who may read what ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "topic_filter",
    [
        *("#", "+/#", "fedge/#", f"{ROOT}#", f"{ROOT}agents/#", f"{ROOT}agents/+/updates/+/+"),
        *(f"{ROOT}agents/alice/updates/1/0", f"{ROOT}agents/alice/inbox", f"{ROOT}+/+/inbox"),
        *(f"$share/thieves/{ROOT}agents/+/updates/+/+", f"$share/thieves/{ROOT}agents/+/inbox"),
        "$SYS/#",
    ],
)
def test_a_device_hears_only_what_is_for_all_or_for_itself(
    connect: Connect, topic_filter: str
) -> None:
    """Mosquitto grants the subscription and keeps silent: what counts is what arrives."""
    coordinator, alice, mallory = connect("coordinator"), connect("alice"), connect("mallory")
    coordinator.subscribe(*Topics(FEDERATION).from_agents)
    alice.subscribe(f"{ROOT}agents/alice/inbox")
    mallory.subscribe(topic_filter, f"{ROOT}round")
    update, inbox = f"{ROOT}agents/alice/updates/1/0", f"{ROOT}agents/alice/inbox"
    assert alice.publish(update, b"secret") == 0
    assert coordinator.publish(inbox, b"receipt") == 0
    assert coordinator.publish(f"{ROOT}round", b"plan") == 0
    assert set(mallory.heard()) == {(f"{ROOT}round", b"plan")}
    assert coordinator.heard(0) == [(update, b"secret")]
    assert alice.heard(0) == [(inbox, b"receipt")]


def test_retained_words_of_others_stay_unread(connect: Connect) -> None:
    alice, mallory = connect("alice"), connect("mallory")
    topic = f"{ROOT}agents/alice/status"
    assert alice.publish(topic, b"born", retain=True) == 0
    mallory.subscribe("#", topic)
    assert mallory.heard() == []
    coordinator = connect("coordinator")
    coordinator.subscribe(topic)
    assert coordinator.heard() == [(topic, b"born")]
    assert alice.publish(topic, b"", retain=True) == 0


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stolen", ["alice", "fedge-houses-alice"])
def test_nobody_takes_over_another_s_session(connect: Connect, stolen: str) -> None:
    coordinator, alice = connect("coordinator"), connect("alice", "fedge-houses-alice")
    inbox = f"{ROOT}agents/alice/inbox"
    alice.subscribe(inbox)
    mallory = connect("mallory", stolen)
    assert coordinator.publish(inbox, b"receipt") == 0
    assert alice.heard() == [(inbox, b"receipt")]
    assert mallory.heard(0) == []
    assert alice.ended.empty()


# --- size -----------------------------------------------------------------------------------------


def test_an_endless_packet_ends_the_connection(place: RunningFleet) -> None:
    with socket.create_connection(("127.0.0.1", place.port), 5) as plain:
        context = context_as(place, "mallory")
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(b"\x10\x14\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x07mallory")
            assert sock.recv(100)[:1] == b"\x20"  # CONNACK
            sock.sendall(b"\x32\xff\xff\xff\x7f")  # a PUBLISH of 256 MiB begins
            assert sock.recv(100) == b"\xe0\x01\x95"  # DISCONNECT: packet too large
    assert until(lambda: "mallory disconnected due to oversize packet" in place.said())


def test_an_oversized_packet_reaches_nobody(connect: Connect) -> None:
    coordinator, mallory = connect("coordinator"), connect("mallory")
    coordinator.subscribe(*Topics(FEDERATION).from_agents)
    own = f"{ROOT}agents/mallory/updates/1/0"
    assert mallory.publish(own, bytes(1 << 20)) == 0
    assert [len(payload) for _, payload in coordinator.heard(0.5)] == [1 << 20]
    mallory.paho.publish(own, bytes(1_114_113), 1)
    assert mallory.ended.get(timeout=5) != 0
    assert coordinator.heard() == []


def test_an_oversized_topic_is_refused_here_or_there(connect: Connect) -> None:
    coordinator, mallory = connect("coordinator"), connect("mallory")
    coordinator.subscribe(*Topics(FEDERATION).from_agents)
    long = f"{ROOT}agents/mallory/updates/{'x' * 60_000}/0"
    assert mallory.publish(f"{ROOT}agents/{'x' * 60_000}/status") == NOT_AUTHORISED
    assert mallory.publish(long) == 0  # below its own name: for the coordinator to refuse
    ((topic, _),) = coordinator.heard()
    with pytest.raises(WireError, match="not a topic of this protocol"):
        Topics(FEDERATION).parse(topic)
    mallory.paho.publish(f"{ROOT}agents/mallory/updates{'/1' * 300}", b"deep", 1)
    assert mallory.ended.get(timeout=5) != 0
    assert coordinator.heard() == []


def test_a_flood_of_connections_ends_at_the_limit_and_disturbs_nobody(tmp_path: Path) -> None:
    need("mosquitto")
    fleet = make_fleet(tmp_path / "fleet")
    config = fleet.broker_folder / "mosquitto.conf"
    config.write_text(config.read_text().replace("max_connections 10000", "max_connections 20"))
    alice = RunningFleet(fleet, tmp_path / "devices", tmp_path).device("alice")
    # No reload here: Mosquitto 2.0.11 forgets this limit at the first one (docs/security.md).
    with running(fleet, tmp_path) as place, ExitStack() as stack:
        context = context_of(alice / "ca.crt", alice / "agent.pem")
        client = Client(place.port, context, "alice").connect()
        stack.callback(client.close)
        crowd = stack.enter_context(ExitStack())
        for _ in range(60):
            crowd.enter_context(socket.create_connection(("127.0.0.1", place.port), 5))
        assert until(lambda: "max_connections exceeded" in place.said())
        assert client.publish(f"{ROOT}agents/alice/status") == 0
        crowd.close()
        late = link_with(place, alice / "ca.crt", alice / "agent.pem")
        stack.callback(late.abort)
        late.open()
        wait_up(late)


# --- shut out -------------------------------------------------------------------------------------


def test_a_revoked_device_is_mute_and_deaf_at_once_and_does_not_come_back(
    place: RunningFleet, connect: Connect
) -> None:
    folder = place.device("gone")
    reload(place)
    coordinator, alice, gone = connect("coordinator"), connect("alice"), connect("gone")
    own, inbox = f"{ROOT}agents/gone/updates/1/0", f"{ROOT}agents/gone/inbox"
    coordinator.subscribe(*Topics(FEDERATION).from_agents)
    gone.subscribe(inbox, f"{ROOT}round")
    assert gone.publish(own, b"last words") == 0
    assert coordinator.heard() == [(own, b"last words")]
    place.fleet.revoke("gone", utc_now())
    reload(place)
    assert gone.publish(own) == NOT_AUTHORISED
    coordinator.publish(inbox, b"receipt")
    coordinator.publish(f"{ROOT}round", b"plan")
    assert gone.heard() == []
    assert coordinator.heard(0) == []
    assert "it was revoked" in why_refused(place, folder / "agent.pem")
    # Nobody else noticed.
    assert alice.ended.empty()
    assert coordinator.ended.empty()
    assert alice.publish(f"{ROOT}agents/alice/reports/1") == 0


def test_a_sleeping_device_keeps_its_session_while_others_come_and_go(
    place: RunningFleet, connect: Connect
) -> None:
    folder = place.device("sleeper")
    reload(place)
    inbox = f"{ROOT}agents/sleeper/inbox"
    link = link_with(place, folder / "ca.crt", folder / "agent.pem")
    link.subscribe(inbox)
    link.open()
    assert not wait_up(link).session_present
    link.close()
    coordinator = connect("coordinator")
    assert coordinator.publish(inbox, b"one") == 0
    place.device("newcomer")
    place.fleet.revoke("newcomer", utc_now())
    reload(place)
    link = link_with(place, folder / "ca.crt", folder / "agent.pem")
    link.subscribe(inbox)
    link.open()
    assert wait_up(link).session_present
    assert [received.payload for received in take(link)] == [b"one"]
    assert coordinator.publish(inbox, b"two") == 0
    assert [received.payload for received in take(link)] == [b"two"]
    link.close()


def test_an_agent_that_is_shut_out_ends_with_one_clear_line(place: RunningFleet) -> None:
    config = place.device("late") / "agent.yaml"
    place.fleet.revoke("late", utc_now())
    reload(place)
    done = command("agent", "run", "--config", config)
    assert done.returncode == 3
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "refused our certificate (it was revoked; cert_file" in error


def shake_hands(
    place: RunningFleet, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLSession | None:
    """Connects over MQTT, perhaps with the ticket of an earlier connection; its own ticket."""
    with socket.create_connection(("127.0.0.1", place.port), 5) as plain:
        sock = context.wrap_socket(plain, server_hostname="localhost", session=session)
        with sock:
            sock.sendall(b"\x10\x14\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x07ignored")
            if sock.recv(1) != b"\x20":
                raise ConnectionError("no CONNACK")
            return sock.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_earlier_tls_session_does_not_outlive_the_certificate(
    place: RunningFleet, version: ssl.TLSVersion
) -> None:
    name = f"ticket-{version.name[-1]}"
    place.device(name)
    reload(place)
    context = context_as(place, name)
    context.minimum_version = context.maximum_version = version
    session = shake_hands(place, context, None)
    place.fleet.revoke(name, utc_now())
    reload(place)
    with pytest.raises(OSError, match=r"(?i)revoked|reset|eof|CONNACK|broken pipe"):
        shake_hands(place, context, session)


def test_a_rotated_device_comes_with_its_new_certificate_only(
    place: RunningFleet, connect: Connect, tmp_path: Path
) -> None:
    folder = place.device("turner")
    reload(place)
    old = tmp_path / "old.pem"
    shutil.copy(folder / "agent.pem", old)
    alice, thief = connect("alice"), connect("turner")
    bundle = place.fleet.rotate("turner", utc_now(), None, 30)
    reload(place)
    assert "it was revoked" in why_refused(place, old)
    fedge("agent", "enrol", bundle, "--dir", folder)
    assert thief.ended.empty()
    assert connect("turner").publish(f"{ROOT}agents/turner/status") == 0
    assert thief.ended.get(timeout=5) != 0  # its place was taken, and the old key opens no other
    assert alice.ended.empty()


# --- and the honest -------------------------------------------------------------------------------


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A `fedge` command that has ended."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "fedge", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=40,
    )


def fedge(*arguments: str | Path) -> str:
    """What a command says on stdout."""
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def honest_agent(place: RunningFleet, number: int) -> subprocess.Popen[bytes]:
    """A device that joined with nothing but the commands; runs until it is stopped."""
    name, folder = f"site-{number}", place.devices / f"site-{number}"
    bundle, data = place.devices / f"{name}.bundle", place.devices / f"{name}.npz"
    fedge("broker", "enrol", place.fleet.folder, name, "--out", bundle)
    with np.load(REPOSITORY / "examples/data/housing_california.npz") as housing:
        part = slice(number, None, 30)
        np.savez(data, features=housing["x"][part], y=housing["y"][part] * 1e-5)
    fedge("agent", "enrol", bundle, "--dir", folder, "--data", data)
    run = [sys.executable, "-P", "-m", "fedge", "agent", "run", "--config"]
    return subprocess.Popen(
        [*run, str(folder / "agent.yaml")],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_an_honest_fleet_learns(place: RunningFleet, tmp_path: Path) -> None:
    agents = [honest_agent(place, number) for number in range(3)]
    folder = place.fleet.folder / "coordinator"
    identity = str(folder / "coordinator.pem")
    tls = {"ca_file": str(folder / "ca.crt"), "cert_file": identity, "key_file": identity}
    config = tmp_path / "coordinator.yaml"
    document = {
        "federation": FEDERATION,
        "model": "house_price",
        "broker": {"host": "localhost", "port": place.port, "tls": tls},
        "rounds": 4,
        "start": {"agents": 3, "timeout_s": 30},
        "round": {"deadline_s": 20, "minimum": 3},
        "training": {"batch_size": 0, "learning_rate": 0.45},
    }
    config.write_text(yaml.safe_dump(document))
    try:
        said = fedge("coordinator", "run", "--config", config, "--json", "--give-up-after", "20")
    finally:
        for agent in agents:
            agent.terminate()
        errors = [agent.communicate(timeout=10)[1].decode() for agent in agents]
    events = [json.loads(line) for line in said.splitlines()]
    losses = [event["record"]["loss"] for event in events if event["event"] == "round"]
    assert len(losses) == 4, errors
    assert losses[-1] < losses[0], losses
    assert not any("refused" in text for text in errors), errors


def test_a_bundle_says_nothing_of_its_key(place: RunningFleet) -> None:
    document = json.loads((place.fleet.folder / "bundles" / "alice.bundle").read_text())
    bundle = Bundle(**document)
    assert bundle.key.splitlines()[1] not in repr(bundle)
    assert "PRIVATE KEY" not in place.said()


def test_the_broker_says_who_connected(place: RunningFleet) -> None:
    link = link_with(
        place, place.devices / "mallory" / "ca.crt", place.devices / "mallory" / "agent.pem"
    )
    link.open()
    wait_up(link)
    link.close()
    assert "as mallory" in place.said()
