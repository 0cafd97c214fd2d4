"""A safe fleet that also listens for WebSockets: who gets in, and as whom."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker.link.link import LinkUp
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings
from broker.security import devices
from broker.security.access_control import PID_FILE
from broker.security.create_fleet import create_fleet
from broker.security.fleet import utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.mosquitto.reload import pid_of
from edge_agent.config import AgentConfig
from edge_agent.enrolment.enrol import enrol
from fedge.errors import ConfigError
from fedge.files import Account
from fedge.yaml_config import load_config
from tests.conftest import nothing_comes, take, wait_down, wait_up
from tests.integration.fleet_folder import FEDERATION, ROOT, RunningFleet, running, until, update
from tests.ports import free_ports


@pytest.fixture(scope="module")
def fleet(
    program: Path, plugin: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFleet]:
    folder = tmp_path_factory.mktemp("websockets")
    port, enrolment_port, websockets = free_ports(3)
    settings = FleetSettings(
        FEDERATION,
        ["localhost", "127.0.0.1"],
        port,
        "127.0.0.1",
        Account.current().name,
        enrolment_port,
        websockets,
        plugin,
    )
    with running(create_fleet(folder / "fleet", settings, utc_now()), folder, program) as made:
        assert until(lambda: " running" in made.said(), 20)  # before, SIGHUP would end it
        yield made


def device(fleet: RunningFleet) -> AgentConfig:
    """Newly enrolled, with a configuration that goes through WebSockets."""
    agent_id = f"pi-{len(fleet.fleet.register.devices)}"
    bundle = devices.enrol(fleet.fleet, agent_id, utc_now(), None, 30)
    folder = fleet.devices / agent_id
    enrol(bundle, folder, None, "", websockets=True)
    config = load_config(folder / "agent.yaml", AgentConfig)
    return msgspec.structs.replace(config, broker=config.broker.located(folder))


def link_of(settings: BrokerSettings, client_id: str) -> MqttLink:
    """Whose session ends with it: Mosquitto 2.0 is damaged by SIGHUP while one is kept."""
    return MqttLink(settings, client_id, session_expiry_s=0)


def told(fleet: RunningFleet) -> None:
    """The broker learns the present access rules."""
    if not fleet.fleet.register.plugin:
        assert until(lambda: pid_of(fleet.fleet.broker_folder / PID_FILE), 20)
    update(fleet)


def test_a_device_goes_through_websockets_in_its_own_name(
    fleet: RunningFleet, links: list[MqttLink]
) -> None:
    one, two = device(fleet), device(fleet)
    told(fleet)
    assert one.broker.port == fleet.fleet.register.websockets
    link, witness = (link_of(config.broker, config.agent_id) for config in (one, two))
    links += [link, witness]
    for client in links:
        client.subscribe(ROOT + "program")
        client.open()
        wait_up(client)
    witness.subscribe(f"{ROOT}agents/{two.agent_id}/inbox")
    link.publish(f"{ROOT}agents/{two.agent_id}/inbox", b"forged")
    link.publish(ROOT + "program", b"forged")
    link.publish(f"{ROOT}agents/{one.agent_id}/status", b"true")
    assert nothing_comes(witness, 0.5)


def test_a_name_that_is_not_the_certificates_counts_for_nothing(
    fleet: RunningFleet, links: list[MqttLink]
) -> None:
    config = device(fleet)
    told(fleet)
    posing = msgspec.structs.replace(config.broker, username="coordinator")
    links.append(link_of(posing, "fedge-coordinator"))
    links[0].open()
    assert isinstance(links[0].poll(10), LinkUp)
    own = config.agent_id
    assert until(lambda: re.search(rf"as {own}\.\w+ \(.*u'{own}\.\w+'\)", fleet.said()))


def test_without_a_certificate_nobody_gets_in(fleet: RunningFleet, links: list[MqttLink]) -> None:
    config = device(fleet)
    assert config.broker.tls is not None
    bare = msgspec.structs.replace(config.broker.tls, cert_file="", key_file="")
    links.append(link_of(msgspec.structs.replace(config.broker, tls=bare), config.agent_id))
    links[0].open()
    down = wait_down(links[0])
    assert "our certificate" in down.reason


def test_who_is_revoked_may_do_nothing(fleet: RunningFleet, links: list[MqttLink]) -> None:
    """Mosquitto 2.0 may let it in: rules hold all the same."""
    config, other = device(fleet), device(fleet)
    devices.revoke(fleet.fleet, config.agent_id, utc_now())
    told(fleet)
    identity = str(fleet.fleet.folder / "coordinator" / "coordinator.pem")
    assert other.broker.tls is not None
    tls = msgspec.structs.replace(other.broker.tls, cert_file=identity, key_file=identity)
    coordinator = link_of(msgspec.structs.replace(other.broker, tls=tls), "coordinator")
    revoked, witness = link_of(config.broker, "revoked"), link_of(other.broker, "witness")
    links += [coordinator, revoked, witness]
    coordinator.subscribe(ROOT + "agents/+/status")
    for client in links:
        client.open()
    wait_up(coordinator)
    wait_up(witness)
    revoked.poll(5)
    for link, agent_id in ((revoked, config.agent_id), (witness, other.agent_id)):
        link.publish(f"{ROOT}agents/{agent_id}/status", b"I am still here")
    heard = [message.topic for message in take(coordinator, 1, 10)]
    assert heard == [f"{ROOT}agents/{other.agent_id}/status"]
    assert nothing_comes(coordinator, 0.5)
    assert nothing_comes(revoked, 0.5)


def test_an_old_key_gives_no_rights(
    fleet: RunningFleet, program: Path, links: list[MqttLink]
) -> None:
    """Mosquitto 2.1 does not even let it in."""
    config, other = device(fleet), device(fleet)
    devices.rotate(fleet.fleet, config.agent_id, utc_now(), None, 30)
    told(fleet)
    identity = str(fleet.fleet.folder / "coordinator" / "coordinator.pem")
    assert other.broker.tls is not None
    tls = msgspec.structs.replace(other.broker.tls, cert_file=identity, key_file=identity)
    coordinator = link_of(msgspec.structs.replace(other.broker, tls=tls), "coordinator")
    old = link_of(config.broker, "old")
    links += [coordinator, old]
    coordinator.subscribe(ROOT + "agents/+/status")
    for link in links:
        link.open()
    wait_up(coordinator)
    event = old.poll(10)
    version = subprocess.run([program, "-h"], capture_output=True, text=True).stdout
    assert "version 2.0." in version or not isinstance(event, LinkUp)
    old.publish(f"{ROOT}agents/{config.agent_id}/status", b"I am still here")
    assert nothing_comes(coordinator, 0.5)


def test_the_listener_stays_on_the_address_it_was_given(fleet: RunningFleet) -> None:
    port = f"{fleet.fleet.register.websockets:04X}"
    here = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(":" + port)
    ]
    assert here == ["0100007F:" + port]


@pytest.mark.parametrize(
    ("bind", "websockets", "message"),
    [
        ("localhost", 9443, "must be an address"),
        ("", 8883, "two listeners"),
        ("", 8884, "two listeners"),
    ],
)
def test_a_listener_that_cannot_be_is_refused(bind: str, websockets: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FleetSettings(FEDERATION, ["localhost"], 8883, bind, "", 0, websockets)


def test_a_fleet_without_the_listener_says_so(fleet: RunningFleet, tmp_path: Path) -> None:
    bundle = devices.enrol(fleet.fleet, tmp_path.name[-20:], utc_now(), tmp_path / "b", 30)
    text = bundle.read_text()
    bundle.write_text(re.sub(r'"websockets": \d+', '"websockets": 0', text))
    with pytest.raises(ConfigError, match="does not listen for WebSockets"):
        enrol(bundle, tmp_path / "pi-7", None, "", websockets=True)
