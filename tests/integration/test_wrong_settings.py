"""Agent and coordinator name a wrong way to the broker within seconds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.local.broker import LocalBroker
from tests.acceptance.federation import Federation, eventually, running
from tests.conftest import need, wait_down
from tests.integration.fleet_folder import command
from tests.integration.test_size_limits import dynamic_security
from tests.transports import Transports

pytestmark = pytest.mark.mosquitto


def changed(transports: Transports, way: str, port: int) -> Any:
    """Settings of a transport with the port of another one."""
    document = transports.settings(way)
    return type(document)(
        port=port, tls=document.tls, websocket=document.websocket, connect_timeout_s=2.0
    )


@pytest.mark.parametrize(
    ("way", "port", "words"),
    [
        ("tls", "tcp", "is it a TLS port (8883 as a rule)? For a port without TLS leave out"),
        ("tls", "websockets", "is it a TLS port (8883 as a rule)?"),
        ("tcp", "tls", "is it an MQTT port without TLS? For a TLS port (8883 as a rule) set brok"),
        ("tcp", "mutual", "For a TLS port (8883 as a rule) set broker.tls"),
        ("tcp", "websockets", "broker.websocket"),
        ("tls", "mutual", "refused our certificate (it requires one; cert_file is not given)"),
        ("websockets", "tcp", "is it a port for WebSockets?"),
    ],
)
def test_a_port_of_another_kind_is_named_at_the_first_attempt(
    transports: Transports,
    network: NetworkLoop,
    links: list[MqttLink],
    way: str,
    port: str,
    words: str,
) -> None:
    settings = changed(transports, way, transports.settings(port).port)
    links.append(MqttLink(settings, "pi", network=network))
    links[0].open()
    reason = wait_down(links[0], 5.0).reason
    assert words in reason
    assert settings.address in reason


def run(kind: str, config: Path) -> subprocess.CompletedProcess[str]:
    return command(kind, "run", "--config", config, "--give-up-after", "2")


@pytest.mark.parametrize("kind", ["agent", "coordinator"])
def test_a_service_says_so_in_one_line(tmp_path: Path, transports: Transports, kind: str) -> None:
    federation = Federation(tmp_path, transports.tls_port, names=("pi-0",)).write()
    done = run(kind, federation.config("pi-0" if kind == "agent" else "coordinator"))
    assert done.returncode == 3
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "For a TLS port (8883 as a rule) set broker.tls, for" in warnings[0]
    assert warnings[0].endswith("; trying again")
    assert done.stderr.splitlines()[-1].startswith("error: broker 127.0.0.1")


def test_an_agent_of_another_federation_says_that_nothing_is_there(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    federation = Federation(tmp_path, mosquitto.port, names=("pi-0",)).write()
    federation.configure("pi-0", federation="g")
    with running(federation):
        federation.start("coordinator", "pi-0")
        line = "nothing is retained on fedge/v1/g/coordinator/status at this broker: is `fed"
        eventually("its word", lambda: line in federation.said("pi-0"), 15)
    assert federation.said("pi-0").count("WARNING") == 1


@pytest.mark.parametrize(("kind", "tail"), [("agent", "round"), ("coordinator", "agents/+/status")])
def test_a_missing_right_to_subscribe_ends_the_service_with_the_next_step(
    tmp_path: Path, kind: str, tail: str
) -> None:
    need("mosquitto")
    rules = "\n".join([*dynamic_security(tmp_path, f"fedge/v1/f/{tail}"), ""])
    with LocalBroker("mosquitto", extra_config=rules) as broker:
        federation = Federation(tmp_path, broker.port, names=("pi-0",)).write()
        done = run(kind, federation.config("pi-0" if kind == "agent" else "coordinator"))
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        f"error: broker 127.0.0.1:{broker.port} refused the subscription fedge/v1/f/{tail}"
        " (not authorised): give this client the right (docs/security.md)"
    )


def test_an_agent_that_may_not_read_weights_declines_and_goes_on(tmp_path: Path) -> None:
    """A subscription that is refused later: the connection stays, nobody waits."""
    need("mosquitto")
    rules = "\n".join([*dynamic_security(tmp_path), ""])
    document = json.loads((tmp_path / "rules.json").read_text())
    deny = {"acltype": "subscribePattern", "topic": "fedge/v1/f/blobs/#", "allow": False}
    document["roles"][0]["acls"].insert(0, {**deny, "priority": 9})
    (tmp_path / "rules.json").write_text(json.dumps(document))
    with LocalBroker("mosquitto", extra_config=rules) as broker:
        federation = Federation(tmp_path, broker.port, names=("pi-0",)).write()
        with running(federation):
            federation.start("coordinator", "pi-0")
            eventually(
                "its word", lambda: "pi-0 cannot take part" in federation.said("coordinator"), 20
            )
    said = federation.said("pi-0")
    assert "broker refuses to deliver fedge/v1/f/blobs/+/+ (not authorised): give this" in said
    assert said.count("connected") == 1
