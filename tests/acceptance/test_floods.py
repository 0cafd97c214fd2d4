"""Junk without end: rounds go on, nobody's update is lost, and the logs stay short."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.local.broker import LocalBroker
from tests.acceptance.federation import Federation, running
from tests.acceptance.flood import agent_topics, flood
from tests.conftest import need

pytestmark = pytest.mark.mosquitto

MESSAGES = 10_000
ROUNDS = 6
#: A round takes a tenth of a second: some pass while the junk does.
TRAINING = {"epochs": 300, "batch_size": 0, "optimizer": "sgd", "learning_rate": 0.0005}
LOG_BYTES = 32_000


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        settings = {"rounds": ROUNDS, "training": TRAINING}
        made = Federation(tmp_path, broker.port, ("pi-0", "pi-1"), coordinator=settings).write()
        with running(made):
            made.start_all()
            made.await_version(1)
            yield made


@pytest.mark.parametrize("agent_id", ["intruder", "intruder-{}"])
def test_junk_to_the_coordinator(federation: Federation, agent_id: str) -> None:
    before = len(federation.said("coordinator"))
    assert flood(federation.port, agent_topics("f", agent_id, MESSAGES)) == MESSAGES
    assert federation.ended("coordinator", 60) == 0
    federation.check_nothing_lost(ROUNDS)
    said = federation.said("coordinator")
    assert "dropped so far, without reading them" in said
    assert len(said) - before < LOG_BYTES


def test_junk_to_the_agents(federation: Federation) -> None:
    tails = ("round", "coordinator/status", "program", "agents/pi-0/inbox")
    topics = (f"fedge/v1/f/{tails[number % 4]}" for number in range(MESSAGES))
    assert flood(federation.port, topics) == MESSAGES
    assert federation.ended("coordinator", 60) == 0
    federation.check_nothing_lost(ROUNDS)
    said = [federation.said(name) for name in federation.names]
    assert all("message on fedge/v1/f/round dropped" in log for log in said)
    assert max(map(len, said)) < LOG_BYTES
