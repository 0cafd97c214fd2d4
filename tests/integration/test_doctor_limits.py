"""The doctors at a Mosquitto with limits, without rights, or of another federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.link.link import LinkUp
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings
from broker.local.broker import LocalBroker
from broker.protocol import messages
from broker.protocol.messages import AgentStatus, CoordinatorStatus
from broker.protocol.topics import AgentStatusTopic, CoordinatorStatusTopic, Topics
from coordinator.config import CoordinatorConfig
from coordinator.doctor import diagnose as diagnose_coordinator
from fedge.check_result import Check
from tests.conftest import need, wait_up
from tests.integration.test_doctor import Found, look

pytestmark = pytest.mark.mosquitto

ROOT = "fedge/v1/houses/"
PROTOCOLS = ["auto", "3.1.1"]


def mosquitto(*lines: str) -> LocalBroker:
    need("mosquitto")
    return LocalBroker("mosquitto", extra_config="\n".join([*lines, ""]))


def rules(folder: Path, *denied: str) -> str:
    path = folder / "rules"
    lines = [f"topic deny {ROOT}{tail}" for tail in denied]
    path.write_text("\n".join([*lines, "topic readwrite #", ""]))
    return f"acl_file {path}"


def settings(broker: LocalBroker, protocol: Any = "auto") -> BrokerSettings:
    return BrokerSettings(port=broker.port, protocol=protocol)


def packets(folder: Path, broker: LocalBroker, protocol: str) -> Check:
    return look(folder, settings(broker, protocol)).one("packets")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_limit_that_is_not_announced_is_found(tmp_path: Path, protocol: str) -> None:
    with mosquitto("message_size_limit 2000") as broker:
        check = packets(tmp_path, broker, protocol)
        coordinator = Found(
            diagnose_coordinator(
                CoordinatorConfig(
                    federation="houses", model="house_price", broker=settings(broker, protocol)
                ),
                tmp_path,
            )
        ).one("packets")
    assert check.state == "warning"
    why = "refused (packet too large)" if protocol == "auto" else "acknowledged and dropped"
    assert check.found.endswith(f"; 1,722 bytes pass, 2,160 are {why}")
    assert "message_size_limit" in check.advice
    assert check.facts["payload_bytes"] == coordinator.facts["payload_bytes"] == 1722


def test_the_agent_itself_finds_what_the_doctor_finds(tmp_path: Path) -> None:
    with mosquitto("message_size_limit 20000") as broker:
        found = packets(tmp_path, broker, "3.1.1").facts["payload_bytes"]
        link = MqttLink(settings(broker, "3.1.1"), "pi", probe_topic="a/probe")
        link.open()
        wait_up(link)
        link.publish("a/b", bytes(122_936))
        up = link.poll(10)
        link.close()
    assert isinstance(up, LinkUp)
    assert up.max_payload_bytes == found == 19_089


def test_a_3_1_1_broker_that_hangs_up_is_tried_to_the_end(tmp_path: Path) -> None:
    with mosquitto("max_packet_size 5000") as broker:
        found = look(tmp_path, settings(broker, "3.1.1"))
    assert found.failed == []
    assert found.one("packets").facts["payload_bytes"] == 4391
    assert "are refused (connection to broker" in found.one("packets").found
    assert found.one("round trip").state == "ok"  # it has connected again


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_limit_that_nothing_fits_fails(tmp_path: Path, protocol: str) -> None:
    with mosquitto("message_size_limit 1000") as broker:
        check = packets(tmp_path, broker, protocol)
    assert check.state == "failed"
    assert "a message of 1,280 bytes is" in check.found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_limits_all_is_well(tmp_path: Path, protocol: str) -> None:
    with mosquitto() as broker:
        check = packets(tmp_path, broker, protocol)
    assert check.state == "ok"
    assert check.found.endswith("123,800 bytes pass")


@pytest.mark.parametrize(("protocol", "state"), [("auto", "ok"), ("3.1.1", "warning")])
def test_without_a_topic_to_test_on_this_is_said(tmp_path: Path, protocol: str, state: str) -> None:
    with mosquitto(rules(tmp_path, "agents/alice/probe")) as broker:
        check = packets(tmp_path, broker, protocol)
    assert check.state == state
    assert f"this client may not write and read {ROOT}agents/alice/probe" in check.found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_updates_that_may_not_be_sent_are_found_for_a_client_on_3_1_1_too(
    tmp_path: Path, protocol: str
) -> None:
    with mosquitto(rules(tmp_path, "agents/alice/updates/#")) as broker:
        failure = look(tmp_path, settings(broker, protocol)).only_failure
    assert failure.name == "access"
    assert failure.facts["refused"] == [f"write {ROOT}agents/alice/updates/0/0"]


def test_a_wrong_federation_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    with mosquitto() as broker:
        link = MqttLink(settings(broker), "coordinators")
        link.open()
        wait_up(link)
        for name in ("boats", "barns"):
            status = messages.encode(CoordinatorStatus(state="online", session="s"))
            link.publish(Topics(name).name(CoordinatorStatusTopic()), status, retain=True)
        link.close()
        check = look(tmp_path, settings(broker)).one("coordinator")
    assert check.state == "warning"
    assert check.found == (
        f"no word of any below {ROOT}; coordinators of other federations are here: barns, boats"
    )
    assert "is the federation's name right (`federation`)?" in check.advice


def test_a_coordinator_of_a_wrong_federation_is_told_where_agents_are(tmp_path: Path) -> None:
    with mosquitto() as broker:
        link = MqttLink(settings(broker), "agents")
        link.open()
        wait_up(link)
        status = messages.encode(AgentStatus(state="online", agent_instance="b"))
        link.publish(Topics("boats").name(AgentStatusTopic("pi-1")), status, retain=True)
        link.close()
        config = CoordinatorConfig(
            federation="houses", model="house_price", broker=settings(broker)
        )
        check = Found(diagnose_coordinator(config, tmp_path)).one("agents")
    assert check.state == "warning"
    assert check.facts["known"] == 0
    assert check.found.endswith("; agents of other federations are here: boats")
