"""Brokers that refuse large messages or lack rights, and say so or not: real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.local.broker import LocalBroker
from tests.acceptance.federation import Federation, eventually, housing_rows, running
from tests.acceptance.test_chaos import digits, large_federation
from tests.conftest import need

pytestmark = pytest.mark.mosquitto

ROUNDS = 2


@pytest.mark.parametrize("limit", ["message_size_limit 2000", "message_size_limit 20000"])
@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_chunks_shrink_to_what_the_broker_takes(tmp_path: Path, protocol: str, limit: str) -> None:
    """Down and up: programs of 8 or 40 KB, weights and updates of 797 KB in the larger model."""
    need("mosquitto")
    is_large = limit.endswith("20000")
    if is_large:
        federation, rows = large_federation(tmp_path, rounds=1), digits(2)
    else:
        federation = Federation(tmp_path, coordinator={"rounds": ROUNDS})
        rows = housing_rows(3)
    federation.broker = {"protocol": protocol}
    with LocalBroker("mosquitto", extra_config=limit + "\n") as broker:
        federation.port = broker.port
        with running(federation.write(rows)):
            federation.start_all()
            assert federation.ended("coordinator") == 0
            federation.check_nothing_lost(1 if is_large else ROUNDS)
    for name in ("coordinator", "pi-0") if is_large else ("coordinator",):
        assert federation.said(name).count(" takes messages of ") == 1
        assert "another client" not in federation.said(name)


def denying(folder: Path, *tails: str) -> str:
    """Lines for Mosquitto: everybody may do everything in federation f, but for some topics."""
    rules = [f"topic deny fedge/v1/f/{tail}" for tail in tails]
    path = folder / "access.acl"
    path.write_text("\n".join([*rules, "topic readwrite fedge/v1/f/#", ""]))
    return f"acl_file {path}\n"


def test_an_agent_that_may_not_send_updates_declines_and_no_round_waits_for_it(
    tmp_path: Path,
) -> None:
    need("mosquitto")
    settings = {"rounds": 3, "cohort": {"at_least": 2}, "round": {"minimum": 2, "deadline_s": 60}}
    federation = Federation(tmp_path, coordinator=settings)
    rules = denying(tmp_path, "agents/pi-0/updates/#")
    with LocalBroker("mosquitto", extra_config=rules) as broker:
        federation.port = broker.port
        federation.write()
        federation.configure("coordinator", start={"agents": 3})
        with running(federation):
            federation.start_all()
            assert federation.ended("coordinator") == 0
    first, *others = federation.records()
    assert first.declined == {"pi-0": "publish_refused"}
    assert [record.asked for record in others] == [2, 2]  # it says that it is unavailable
    assert [record.status for record in federation.records()] == ["committed"] * 3
    assert sum(record.seconds for record in federation.records()) < 60
    refusal = "the broker refuses messages on fedge/v1/f/agents/pi-0/updates/#: not authorised"
    assert f"pi-0 cannot take part: {refusal}" in federation.said("coordinator")
    assert federation.said("pi-0").count("ERROR") == 1
    assert federation.said("pi-0").count("training on") == 1


def test_a_coordinator_that_may_not_publish_its_plan_says_so_once(tmp_path: Path) -> None:
    need("mosquitto")
    settings = {"round": {"minimum": 1, "deadline_s": 0.5}, "cohort": {"at_least": 1}}
    federation = Federation(tmp_path, names=("pi-0",), coordinator=settings)
    with LocalBroker("mosquitto", extra_config=denying(tmp_path, "round")) as broker:
        federation.port = broker.port
        with running(federation.write()):
            federation.start_all()
            eventually(
                "two rounds", lambda: "round 2 abandoned" in federation.said("coordinator"), 30
            )
    errors = [line for line in federation.said("coordinator").splitlines() if "ERROR" in line]
    assert len(errors) == 1
    assert "broker refuses messages on fedge/v1/f/round (not authorised): give this" in errors[0]


def test_where_reports_are_refused_too_the_agent_says_what_to_do_once(tmp_path: Path) -> None:
    need("mosquitto")
    settings = {"rounds": 3, "cohort": {"at_least": 2}, "round": {"minimum": 2, "deadline_s": 3}}
    federation = Federation(tmp_path, coordinator=settings)
    rules = denying(tmp_path, "agents/pi-0/updates/#", "agents/pi-0/reports/#")
    with LocalBroker("mosquitto", extra_config=rules) as broker:
        federation.port = broker.port
        federation.write()
        federation.configure("coordinator", start={"agents": 3})
        with running(federation):
            federation.start_all()
            assert federation.ended("coordinator") == 0
    # The first round waits for its deadline; then the status says that it is unavailable.
    assert [record.asked for record in federation.records()] == [3, 2, 2]
    lines = [line for line in federation.said("pi-0").splitlines() if "ERROR" in line]
    assert len(lines) == 2
    for line, topic in zip(lines, ("updates/+/+", "reports/+"), strict=True):
        assert f"broker refuses messages on fedge/v1/f/agents/pi-0/{topic} (not auth" in line
        assert "give this client the right (docs/security.md)" in line


@pytest.mark.parametrize("protocol", ["auto", "3.1.1"])
def test_a_device_that_takes_less_than_others_is_sent_smaller_chunks(
    tmp_path: Path, protocol: str
) -> None:
    """Nobody else is slowed down below 16 KiB."""
    need("mosquitto")
    federation = large_federation(tmp_path, rounds=1)
    with LocalBroker("mosquitto") as broker:
        federation.port = broker.port
        federation.write(digits(2))
        small = federation.at(broker.port) | {"max_payload_bytes": 20_000, "protocol": protocol}
        federation.configure("pi-0", broker=small)
        with running(federation):
            federation.start_all()
            assert federation.ended("coordinator") == 0
            federation.check_nothing_lost(1)
    assert "pi-0 takes messages of 20000 bytes" in federation.said("coordinator")
    for name in federation.names:
        assert "stalled" not in federation.said(name)
        assert "ERROR" not in federation.said(name)
