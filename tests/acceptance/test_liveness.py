"""Who is there and who is not: heartbeats, silence, and two who say they are the same."""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from broker.link.link import Received
from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker
from broker.protocol.messages import AgentStatus, decode
from broker.protocol.topics import AgentStatusTopic, Topics
from tests.acceptance.federation import Federation, eventually, running
from tests.conftest import need, wait_up

#: Much more than a test has time for.
ENDLESS = {"epochs": 10_000, "batch_size": 1, "learning_rate": 1e-6}


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


def statuses(broker: LocalBroker, agent_id: str, for_s: float) -> list[tuple[float, AgentStatus]]:
    """What an agent says of itself from now on, and when."""
    link = MqttLink(broker.settings, client_id="ear", session_expiry_s=0)
    link.subscribe(Topics("f").name(AgentStatusTopic(agent_id)))
    link.open()
    wait_up(link)
    heard = []
    with closing(link):
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0:
            event = link.poll(left_s)
            if isinstance(event, Received) and not event.retain:
                heard.append((time.monotonic(), decode(event.payload, AgentStatus)))
    return heard


def test_heartbeats_come_on_time_while_training_goes_on(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(
        tmp_path,
        broker.port,
        names=("pi-0",),
        coordinator={"rounds": 1, "training": ENDLESS, "round": {"deadline_s": 60}},
        agent={"heartbeat_s": 1},
    ).write()
    with running(federation):
        federation.start_all()
        eventually("it trains", lambda: "round 1: training" in federation.said("pi-0"))
        heard = statuses(broker, "pi-0", 4.5)
        assert "update counted" not in federation.said("pi-0"), "it still trains"
        assert len(heard) >= 3
        times = [at for at, _ in heard]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert all(0.5 < gap < 2.5 for gap in gaps), gaps
        assert all(status.state == "online" for _, status in heard)
        assert "marked offline" not in federation.said("coordinator")
        # And the end of the process does not wait for the end of the training.
        federation.signal("pi-0", signal.SIGTERM)
        assert federation.ended("pi-0", 10) == 0


def test_an_agent_that_stands_still_expires_and_the_round_goes_on(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(
        tmp_path,
        broker.port,
        coordinator={
            "rounds": 12,
            "round": {"minimum": 2, "deadline_s": 60},
            "cohort": {"at_least": 2},
            "start": {"agents": 3},
        },
        agent={"heartbeat_s": 1},
    ).write()
    federation.configure("pi-2", broker=federation.at(broker.port) | {"keepalive_s": 3600})
    with running(federation):
        federation.start_all()
        federation.await_version(1)
        federation.signal("pi-2", signal.SIGSTOP)  # its connection stays: there is no will
        federation.await_version(6, 20)
        assert "agent pi-2 missed its heartbeats; marked offline" in federation.said("coordinator")
        federation.signal("pi-2", signal.SIGCONT)
        assert federation.ended("coordinator") == 0
        records = federation.records()
        assert [record.version for record in records] == list(range(1, 13))
        without = [record for record in records if set(record.agents) == {"pi-0", "pi-1"}]
        assert without
        assert without[0].closed == "everyone", "not its deadline"
        assert 2 < without[0].seconds < 15
        assert all(record.asked == 2 for record in without[1:])
        assert records[-1].reported == 3, "it came back"


def knows_of_another(log: str) -> bool:
    # Mosquitto 2.0 hangs up without a word, newer ones say why.
    return "does another client use the id 'fedge-f-pi-0'?" in log or "was taken over" in log


def test_two_processes_with_one_id_are_told_by_the_coordinator_and_by_themselves(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(
        tmp_path,
        broker.port,
        names=("pi-0",),
        coordinator={"rounds": 1, "cohort": {"at_least": 2}, "round": {"minimum": 2}},
    ).write()

    def says_so(name: str) -> bool:
        return knows_of_another(federation.said(name))

    with running(federation):
        federation.start_all()
        eventually("it is there", lambda: "model ready" in federation.said("pi-0"))
        # As a card that was copied: another machine's state folder is its own.
        ours, copy = federation.folder / "pi-0", federation.folder / "copy"
        shutil.copytree(ours, copy, ignore=shutil.ignore_patterns("state"))
        federation.start("copy")
        eventually(
            "the coordinator says so",
            lambda: "two processes use the id pi-0" in federation.said("coordinator"),
        )
        for name in ("pi-0", "copy"):
            eventually(f"{name} says so", partial(says_so, name))
