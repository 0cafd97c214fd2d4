"""A federation of real processes comes to the same θ whichever way its messages travel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from broker.link.settings import BrokerSettings
from broker.local.broker import HOST, LocalBroker
from tests.acceptance.federation import ROOT, Federation, running
from tests.conftest import need
from tests.ports import free_port
from tests.transports import Transports, broker_of_3_1_1, make_certificates

_ROUNDS = 2
_PASSWORD, _HEADER = "pa55-word-of-the-fleet", "bearer-of-the-gateway"


def keys(settings: BrokerSettings) -> dict[str, Any]:
    """The section `broker` that means these settings."""
    said: dict[str, Any] = msgspec.to_builtins(settings)
    wanted = ("port", "protocol", "tls", "websocket")
    return {key: said[key] for key in wanted if said[key] is not None}


def finish(federation: Federation) -> None:
    federation.start_all()
    assert federation.ended("coordinator", 60) == 0, federation.said("coordinator")
    federation.check_nothing_lost(_ROUNDS)


@pytest.mark.parametrize("transport", ["tcp", "wss", "3.1.1"])
def test_every_transport_ends_with_the_same_weights(
    transports: Transports, tmp_path: Path, transport: str
) -> None:
    settings = transports.settings(transport)
    federation = Federation(tmp_path, coordinator={"rounds": _ROUNDS}, broker=keys(settings))
    with running(federation.write()):
        finish(federation)


def test_a_broker_that_knows_only_3_1_1_carries_a_federation(tmp_path: Path) -> None:
    need("embedded")
    with broker_of_3_1_1(tmp_path) as port:
        federation = Federation(tmp_path, port, coordinator={"rounds": _ROUNDS})
        with running(federation.write()):
            finish(federation)
            assert "MQTT 3.1.1: no message expiry" in federation.said("coordinator")


def test_agents_of_3_1_1_learn_with_a_coordinator_of_5(
    transports: Transports, tmp_path: Path
) -> None:
    federation = Federation(tmp_path, transports.broker.port, coordinator={"rounds": _ROUNDS})
    federation.write()
    for name, transport in zip(federation.names, ("3.1.1", "3.1.1", "wss"), strict=True):
        settings = federation.at(0) | keys(transports.settings(transport))
        federation.configure(name, broker=settings)
    coordinator = federation.at(transports.broker.port) | {"protocol": "5"}
    federation.configure("coordinator", broker=coordinator)
    with running(federation):
        finish(federation)


def test_fleet_run_takes_a_broker_from_a_file(transports: Transports, tmp_path: Path) -> None:
    (tmp_path / "broker.yaml").write_text(yaml.safe_dump(keys(transports.settings("wss"))))
    scenario = ROOT / "examples" / "house_price.yaml"
    command = [sys.executable, "-m", "fedge", "fleet", "run", str(scenario), "--agents", "2"]
    command += ["--rounds", "1", "--broker", str(tmp_path / "broker.yaml"), "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["broker"] == "external"
    agent = yaml.safe_load(next((tmp_path / "out").glob("processes/*/agent.yaml")).read_text())
    assert agent["broker"]["websocket"]["path"] == "/mqtt"


# --- secrets -------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port of WebSockets in TLS of a broker that wants a password, and the certificates."""
    need("mosquitto")
    folder = tmp_path / "broker"
    folder.mkdir()
    make_certificates(folder)
    (folder / "passwords").write_text(f"pi:{_PASSWORD}\n")
    subprocess.run(["mosquitto_passwd", "-U", str(folder / "passwords")], check=True)
    (folder / "passwords").chmod(0o644)
    port = free_port()
    # It also lets in who gives no name, so that `LocalBroker` sees that it runs.
    config = (
        f"listener {port} {HOST}\nprotocol websockets\nsocket_domain ipv4\n"
        f"password_file {folder}/passwords\ncafile {folder}/ca.pem\n"
        f"certfile {folder}/server.pem\nkeyfile {folder}/server.pem\n"
    )
    with LocalBroker("mosquitto", extra_config=config):
        yield port, folder


def command_lines() -> dict[int, bytes]:
    """Of all processes of this user, as `ps` shows them."""
    found: dict[int, bytes] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found[int(process.name)] = (process / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def test_no_secret_is_in_a_log_a_message_or_the_list_of_processes(
    guarded: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificates = guarded
    secrets = [_PASSWORD.encode(), _HEADER.encode()]
    (tmp_path / "headers").write_text(f"Authorization: Bearer {_HEADER}\n")
    monkeypatch.setenv("FLEET_PASSWORD", _PASSWORD)
    broker = {
        "port": port,
        "username": "pi",
        "password_env": "FLEET_PASSWORD",
        "tls": {"ca_file": str(certificates / "ca.pem")},
        "websocket": {"headers_file": str(tmp_path / "headers")},
    }
    federation = Federation(
        tmp_path,
        port,
        coordinator={"rounds": _ROUNDS},
        broker=broker,
        names=("pi-0", "pi-1"),
        verbose=True,
    )
    with running(federation.write()):
        federation.start("pi-0", "pi-1")
        lines = command_lines()
        assert any(b"pi-0" in line for line in lines.values())
        assert not [pid for pid, line in lines.items() if any(s in line for s in secrets)]
        federation.start("coordinator")
        assert federation.ended("coordinator", 60) == 0, federation.said("coordinator")
        federation.stop()
        wrong = {**broker, "username": "nobody"}  # is told with its name and not with its secret
        federation.configure("pi-1", broker=federation.at(port) | wrong)
        federation.start("pi-1")
        assert federation.ended("pi-1") == 3
        assert "check username 'nobody' and the password in FLEET_PASSWORD" in federation.said(
            "pi-1"
        )
    written = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name not in ("headers", "passwords")
    ]
    assert any(path.stat().st_size for path in written)
    assert not [path for path in written if any(s in path.read_bytes() for s in secrets)]


@pytest.mark.parametrize("verbose", [(), ("-v",)], ids=["quiet", "verbose"])
def test_settings_that_are_wrong_are_told_without_their_secret(
    tmp_path: Path, verbose: tuple[str, ...]
) -> None:
    data = {"path": "x.npz"}
    (tmp_path / "headers").write_text(_HEADER + "\n")
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"websocket": {"headers_file": "headers"}}, {}),
        ({"websocket": {"headers": {"Authorization": _HEADER}}}, {}),
        ({"password": _PASSWORD}, {}),
        ({}, {"mqtt_proxy": f"https://u:{_PASSWORD}@gate"}),
    ]
    for broker, environment in cases:
        document = {"federation": "f", "agent_id": "pi", "data": data, "broker": broker}
        (tmp_path / "agent.yaml").write_text(yaml.safe_dump(document))
        config = str(tmp_path / "agent.yaml")
        command = ["fedge", "agent", "run", *verbose, "--config", config, "--give-up-after", "1"]
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            timeout=30,
        )
        assert done.returncode == 2, done.stderr.decode()
        assert _PASSWORD.encode() not in done.stderr + done.stdout
        assert _HEADER.encode() not in done.stderr + done.stdout
