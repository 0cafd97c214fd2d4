"""Everything is killed, in turn and at random moments, and nothing is lost: real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pytest

from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker
from broker.protocol.messages import RoundPlan, decode
from broker.protocol.topics import ChunkTopic, RoundTopic, Topics
from tests.acceptance.federation import (
    ROOT,
    Federation,
    Rows,
    eventually,
    housing_rows,
    running,
)
from tests.acceptance.proxy import Proxy
from tests.conftest import need, take, wait_up

DIGITS = ROOT / "examples" / "data" / "mnist_writers_small.npz"
ROUNDS = 20
SEED = int(os.environ.get("FEDGE_CHAOS_SEED", "20"))


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    """A Mosquitto that forgets everything when it is killed."""
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


def test_a_run_in_which_everything_is_killed_in_turn_ends_with_the_right_weights(
    tmp_path: Path, broker: LocalBroker
) -> None:
    rng = Random(SEED)
    settings = {"rounds": ROUNDS}
    federation = Federation(tmp_path, broker.port, coordinator=settings).write()
    with running(federation):
        federation.start_all()
        for version in range(1, ROUNDS - 2, 2):
            federation.await_version(version)
            time.sleep(rng.uniform(0, 0.3))  # anywhere in a round: announced, training, counted
            victims = ["coordinator", rng.choice(federation.names), "broker"]
            victim = victims[(version // 2) % 3]
            if victim == "broker":
                broker.kill()
                time.sleep(rng.uniform(0, 0.3))
                broker.start()
            else:
                federation.kill(victim)
                time.sleep(rng.uniform(0, 0.3))
                federation.start(victim)
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(ROUNDS)
        assert len(federation.records()) == ROUNDS, "and no round was abandoned"


def test_an_agent_that_is_too_slow_does_not_hold_a_round_beyond_its_deadline(
    tmp_path: Path, broker: LocalBroker
) -> None:
    *quick, (x, y) = housing_rows(3)
    slow = (np.tile(x, (400, 1)), np.tile(y, 400))  # 400 times the work of the others
    settings = {
        "rounds": 3,
        "round": {"deadline_s": 1.5, "minimum": 2},
        "cohort": {"at_least": 2},
        "start": {"agents": 3},
    }
    federation = Federation(tmp_path, broker.port, coordinator=settings).write([*quick, slow])
    with running(federation):
        federation.start_all()
        assert federation.ended("coordinator") == 0
        records = federation.records()
        # It costs a deadline once, then it is left out of a round, then waited for a little.
        first, second, third = [(record.asked, record.closed) for record in records]
        assert (first, second) == ((3, "deadline"), (2, "goal"))
        assert third in ((3, "grace"), (3, "deadline"))  # whichever comes first
        for record in records:
            assert (record.status, record.reported) == ("committed", 2)
            assert set(record.agents) == {"pi-0", "pi-1"}
        assert 1.5 <= records[0].seconds < 4
        assert "its job is cancelled" in federation.said("pi-2")
        # The mean is of those that reported: as if the slow one had never been there.
        federation.names = federation.names[:2]
        federation.check_theta(3)


@pytest.mark.parametrize("how", ["swallow", "cut"])
def test_a_partition_heals_and_costs_no_update(
    tmp_path: Path, broker: LocalBroker, how: str
) -> None:
    federation = Federation(tmp_path, broker.port, coordinator={"rounds": 6}).write()
    with Proxy(broker.port) as proxy, running(federation):
        federation.configure("pi-1", broker=federation.at(proxy.port))
        federation.start_all()
        federation.await_version(2)
        getattr(proxy, how)()
        at = federation.version()
        eventually("it is noticed", lambda: "lost" in federation.said("pi-1"), 15)
        assert federation.version() <= at + 1, "nobody goes on without it"
        proxy.heal()
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(6)


def digits(agents: int, rows: int = 40) -> list[Rows]:
    """Real digits, dealt out evenly."""
    with np.load(DIGITS) as file:
        x, y = file["x"], file["y"]
    return [(x[n * rows :][:rows] / np.float32(255), y[n * rows :][:rows]) for n in range(agents)]


def large_federation(folder: Path, stall_s: float = 10.0, rounds: int = 2) -> Federation:
    """P = 199,210: weights and updates of 797 KB, 7 chunks."""
    need("mosquitto")
    return Federation(
        folder,
        names=("pi-0", "pi-1"),
        model="handwritten_digit",
        coordinator={
            "training": {"epochs": 1, "batch_size": 0, "learning_rate": 0.1},
            "round": {"minimum": 2, "deadline_s": 30, "stall_s": stall_s},
            "rounds": rounds,
        },
        agent={"stall_s": stall_s},
    )


def test_a_broker_that_takes_packets_of_128_kib_carries_a_large_model(tmp_path: Path) -> None:
    federation = large_federation(tmp_path)
    with LocalBroker("mosquitto", extra_config="max_packet_size 131072\n") as broker:
        federation.port = broker.port
        with running(federation.write(digits(2))):
            federation.start_all()
            assert federation.ended("coordinator") == 0
            federation.check_nothing_lost(2)


def test_a_broker_with_a_short_queue_drops_chunks_and_loses_nothing(tmp_path: Path) -> None:
    # 90 chunks each way; beyond those in flight (8 to an agent, 64 to the coordinator) the broker
    # keeps one for each client.
    limits = "max_packet_size 10000\nmax_queued_messages 1\n"
    federation = large_federation(tmp_path, stall_s=0.2, rounds=1)

    def has_an_update(name: str) -> bool:
        waits = (federation.state(name) / "pending.bin").exists()
        return waits or "update counted" in federation.said(name)

    with LocalBroker("mosquitto", extra_config=limits) as broker:
        federation.port = broker.port
        with running(federation.write(digits(2))):
            federation.start_all()
            # A coordinator that takes nothing for a while: their queue is the broker's to cut.
            eventually(
                "both train",
                lambda: all("training on" in federation.said(name) for name in federation.names),
            )
            federation.signal("coordinator", signal.SIGSTOP)
            eventually("both have an update", lambda: all(map(has_an_update, federation.names)))
            time.sleep(1)  # in which they publish it
            federation.signal("coordinator", signal.SIGCONT)
            assert federation.ended("coordinator") == 0
            federation.check_nothing_lost(1)
            said = federation.said("pi-0") + federation.said("pi-1")
            assert " missing" in said, "chunks of the weights were dropped"
            assert " chunks again" in said, "and chunks of the updates"


def test_chunks_that_the_broker_lost_are_asked_for_and_published_again(
    tmp_path: Path, broker: LocalBroker
) -> None:
    gone = False

    def loses(topic: str) -> bool:
        return not gone and "/blobs/" in topic and topic.endswith(("/2", "/5"))

    federation = large_federation(tmp_path, stall_s=0.5, rounds=1)
    federation.port = broker.port
    federation.write(digits(2))
    topics = Topics("f")
    vandal = MqttLink(broker.settings, client_id="vandal", session_expiry_s=0)
    vandal.subscribe(topics.name(RoundTopic()))
    vandal.open()
    wait_up(vandal)
    with Proxy(broker.port, loses) as proxy, running(federation), closing(vandal):
        federation.configure("pi-1", broker=federation.at(proxy.port))
        federation.start_all()
        (message,) = take(vandal, timeout_s=20)
        weights = decode(message.payload, RoundPlan).weights
        for index in (2, 5):
            vandal.publish(topics.name(ChunkTopic(weights.sha256, index)), b"", retain=True)
        vandal.close()  # the broker has it
        stalled = f"blob {weights.sha256[:12]} has stalled: "
        # Until then also what pi-0 had published again is lost on the way.
        eventually("it misses them", lambda: stalled in federation.said("pi-1"), 15)
        gone = True
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(1)
