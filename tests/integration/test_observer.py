"""An observer of a fleet: reads statuses and results, and nothing else, at a real Mosquitto."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.security import devices
from broker.security.fleet import utc_now
from tests.integration.conftest import Connect
from tests.integration.fleet_folder import (
    NOT_AUTHORISED,
    ROOT,
    Client,
    RunningFleet,
    context_of,
    fedge,
    update,
    why_refused,
)

pytestmark = pytest.mark.mosquitto

PUBLIC = ("coordinator/status", "agents/alice/status", "results")


def enrolled(place: RunningFleet, name: str) -> Path:
    """Folder of a new observer, made by the command."""
    out = place.devices / name
    said = fedge("broker", "enrol", place.fleet.folder, name, "--observer", "--out", out)
    assert "mosquitto_sub -h localhost" in said
    return out


def connected(place: RunningFleet, folder: Path) -> Client:
    context = context_of(folder / "ca.crt", None)
    context.load_cert_chain(folder / "observer.crt", folder / "observer.key")
    return Client(place.port, context).connect()


@pytest.fixture
def observer(place: RunningFleet, unique: Callable[[str], str]) -> Iterator[Client]:
    client = connected(place, enrolled(place, unique("watch")))
    yield client
    client.close()


def test_an_observer_reads_what_is_public(connect: Connect, observer: Client) -> None:
    coordinator, alice = connect("coordinator"), connect("alice")
    wanted = (f"{ROOT}coordinator/status", f"{ROOT}agents/+/status", f"{ROOT}results")
    assert observer.subscribe(*wanted) == [1, 1, 1]
    for tail in PUBLIC:
        speaker = alice if tail.startswith("agents") else coordinator
        assert speaker.publish(ROOT + tail, b'{"round_id": 3}') == 0
    assert {topic for topic, _ in observer.heard()} == {ROOT + tail for tail in PUBLIC}


@pytest.mark.parametrize(
    "tail",
    [
        *("results", "coordinator/status", "program", "round", f"blobs/{'0' * 64}/0"),
        *("agents/alice/status", "agents/alice/inbox", "agents/alice/updates/1/0"),
        *("agents/watch/status", "agents/watch/probe", "coordinator/probe"),
    ],
)
def test_an_observer_publishes_nothing(observer: Client, tail: str) -> None:
    assert observer.publish(ROOT + tail) == NOT_AUTHORISED
    assert observer.publish("$CONTROL/dynamic-security/v1", b"{}") == NOT_AUTHORISED


@pytest.mark.parametrize(
    "topic_filter",
    [
        *("#", f"{ROOT}#", f"{ROOT}agents/#", f"{ROOT}+", f"{ROOT}round", f"{ROOT}blobs/+/+"),
        *(f"{ROOT}agents/+/updates/+/+", f"{ROOT}agents/alice/inbox", f"{ROOT}agents/+/reports/+"),
        f"$share/thieves/{ROOT}agents/+/updates/+/+",
    ],
)
def test_an_observer_reads_nothing_else(
    connect: Connect, observer: Client, topic_filter: str
) -> None:
    coordinator, alice = connect("coordinator"), connect("alice")
    observer.subscribe(topic_filter)
    alice.publish(f"{ROOT}agents/alice/updates/1/0", b"secret")
    alice.publish(f"{ROOT}agents/alice/reports/1", b"secret")
    coordinator.publish(f"{ROOT}agents/alice/inbox", b"receipt")
    coordinator.publish(f"{ROOT}round", b"plan")
    coordinator.publish(f"{ROOT}blobs/{'0' * 64}/0", b"weights")
    assert observer.heard() == []


def test_an_observer_leaves_no_will_as_a_device(
    place: RunningFleet, connect: Connect, unique: Callable[[str], str]
) -> None:
    coordinator, folder = connect("coordinator"), enrolled(place, unique("watch"))
    coordinator.subscribe(f"{ROOT}agents/+/status")
    context = context_of(folder / "ca.crt", None)
    context.load_cert_chain(folder / "observer.crt", folder / "observer.key")
    client = Client(place.port, context)
    client.paho.will_set(f"{ROOT}agents/alice/status", b"offline", 1)
    client.connect()
    dead = client.paho.socket()
    assert isinstance(dead, socket.socket)
    dead.shutdown(socket.SHUT_RDWR)
    client.paho.loop_stop()
    assert coordinator.heard(0.4) == []


def test_an_observer_is_rotated_and_revoked_like_a_device(
    place: RunningFleet, unique: Callable[[str], str]
) -> None:
    name = unique("watch")
    folder = enrolled(place, name)
    old = place.devices / f"{name}.pem"
    old.write_bytes((folder / "observer.crt").read_bytes() + (folder / "observer.key").read_bytes())
    fedge("broker", "rotate", place.fleet.folder, name, "--out", folder)
    assert "it was revoked" in why_refused(place, old)
    client = connected(place, folder)
    assert client.subscribe(f"{ROOT}results") == [1]
    client.close()
    rows = json.loads(fedge("broker", "list", place.fleet.folder, "--json"))
    assert [row["observer"] for row in rows if row["agent_id"] == name] == [True, True]
    devices.revoke(place.fleet, name, utc_now())
    update(place)
    old.write_bytes((folder / "observer.crt").read_bytes() + (folder / "observer.key").read_bytes())
    assert "it was revoked" in why_refused(place, old)


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="needs mosquitto_sub")
def test_mosquitto_sub_reads_results(
    place: RunningFleet, connect: Connect, unique: Callable[[str], str]
) -> None:
    folder, coordinator = enrolled(place, unique("watch")), connect("coordinator")
    coordinator.publish(f"{ROOT}results", b'{"round_id": 3}', retain=True)
    keys = ["--cafile", folder / "ca.crt", "--cert", folder / "observer.crt"]
    words = [*keys, "--key", folder / "observer.key", "-t", f"{ROOT}results", "-C", "1", "-W", "5"]
    run = ["mosquitto_sub", "-h", "localhost", "-p", str(place.port), *map(str, words)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=20)
    assert json.loads(done.stdout) == {"round_id": 3}, done.stderr
