"""The threads that train: who waits for whom, and what is shared."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol.messages import BlobRef, Cohort, RoundPlan
from edge_agent.config import AgentConfig
from edge_agent.data.config import DataConfig
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.events import (
    Event,
    JobDone,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    StartJob,
)
from edge_agent.machine.pending_update import LocalUpdate
from edge_agent.worker import Worker, WorkerPool
from learning.vector.parameters import Layout
from models.package.package import ModelPackage
from models.zoo import load_zoo

LONG = 1_000_000  # steps: minutes


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return load_zoo("house_price")


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(threads=2)
    yield pool
    pool.stop()


class Agent:
    """A worker of a pool, and the events it reports."""

    def __init__(self, pool: WorkerPool, folder: Path, name: str, **settings: Any) -> None:
        rng = np.random.default_rng(len(name))
        x = rng.normal(size=(20, 2)).astype(np.float32)
        (folder / name).mkdir()
        np.savez(folder / name / "data.npz", features=x, y=x.sum(1))
        data = DataConfig(path="data.npz")
        config = AgentConfig(federation="f", agent_id=name, data=data, **settings)
        self.config = config
        self.state = DeviceState()
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.worker: Worker = pool.worker(config, folder / name, self.events.put)

    def load(self, package: ModelPackage) -> None:
        self.worker.submit(LoadPackage(package.digest, package.wire))

    def train(
        self,
        package: ModelPackage,
        round_id: int = 1,
        steps: int = 1,
        algorithm: str = "fedavg",
    ) -> None:
        plan = RoundPlan(
            session="s",
            coordinator_instance="c",
            round_id=round_id,
            state="open",
            version=0,
            blobs={"weights": BlobRef(sha256="0" * 64, size=12, chunks=1)},
            package=package.digest,
            fingerprint=package.spec.fingerprint,
            cohort=Cohort(),
            algorithm=algorithm,
            training={"epochs": 10_000, "max_steps": steps, "learning_rate": 1e-6},
        )
        self.worker.submit(StartJob(plan, {"weights": package.initial}, self.state))

    def train_for_long(self, package: ModelPackage, round_id: int = 1) -> None:
        self.train(package, round_id, LONG)

    def next(self) -> Event:
        return self.events.get(timeout=20)


@pytest.mark.parametrize("describe", [True, False])
def test_targets_are_described_unless_the_owner_says_no(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path, describe: bool
) -> None:
    agent = Agent(pool, tmp_path, "a", describe_targets=describe)
    agent.load(package)
    loaded = agent.next()
    assert isinstance(loaded, PackageLoaded)
    assert list(loaded.targets) == (["target"] if describe else [])


def test_rows_that_are_sorted_by_their_target_are_logged_before_the_first_round(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Agent(pool, tmp_path, "a")
    np.savez(tmp_path / "a" / "data.npz", features=np.ones((100, 2)), y=np.arange(100.0))
    agent.load(package)
    loaded = agent.next()
    assert isinstance(loaded, PackageLoaded)
    (warning,) = loaded.warnings
    assert warning.startswith("target: 39.5 ± 23 in the rows to learn from, 89.5 ± 5.8 in those")
    assert [r.getMessage() for r in caplog.records] == [f"data.npz: {warning}"]


def test_the_jobs_of_one_agent_are_done_in_order(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    agent = Agent(pool, tmp_path, "a")
    agent.load(package)
    for round_id in range(1, 6):
        agent.train(package, round_id)
    assert isinstance(agent.next(), PackageLoaded)
    found = [agent.next() for _ in range(5)]
    assert [e.plan.round_id for e in found if isinstance(e, JobDone)] == [1, 2, 3, 4, 5]


def test_an_agent_that_trains_for_long_holds_up_no_other(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    slow, quick = Agent(pool, tmp_path, "slow"), Agent(pool, tmp_path, "quick")
    for agent in (slow, quick):
        agent.load(package)
        assert isinstance(agent.next(), PackageLoaded)
    slow.train_for_long(package)
    quick.train(package)
    assert isinstance(quick.next(), JobDone)
    assert slow.events.empty()
    slow.worker.cancel()
    assert isinstance(slow.next(), JobFailed)


def test_only_what_was_submitted_before_is_cancelled(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    agent = Agent(pool, tmp_path, "a")
    agent.load(package)
    agent.next()
    agent.train_for_long(package, 1)
    agent.train_for_long(package, 2)
    agent.worker.cancel()
    agent.train(package, 3)
    first, second, third = (agent.next() for _ in range(3))
    assert isinstance(first, JobFailed)
    assert isinstance(second, JobFailed)
    assert (first.detail, second.detail) == ("cancelled", "cancelled")
    assert isinstance(third, JobDone)


def test_a_job_that_fails_is_its_agents_alone(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    broken, sound = Agent(pool, tmp_path, "broken"), Agent(pool, tmp_path, "sound")
    (tmp_path / "broken" / "data.npz").unlink()
    for agent in (broken, sound):
        agent.load(package)
        agent.train(package)
    failed = broken.next()
    assert isinstance(failed, PackageFailed)
    assert failed.reason == "no_data"
    assert isinstance(broken.next(), JobFailed)
    assert isinstance(sound.next(), PackageLoaded)
    assert isinstance(sound.next(), JobDone)


def test_rubbish_instead_of_a_package_is_named(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    agent = Agent(pool, tmp_path, "a")
    agent.worker.submit(LoadPackage("0" * 64, b"rubbish"))
    failed = agent.next()
    assert isinstance(failed, PackageFailed)
    assert failed.reason == "no_program"
    agent.load(package)
    assert isinstance(agent.next(), PackageLoaded)


def test_agents_of_two_models_share_a_thread(package: ModelPackage, tmp_path: Path) -> None:
    other = ModelPackage(package.spec, package.program, package.initial + 1)
    pool = WorkerPool(threads=1, programs=1)
    try:
        agents = [Agent(pool, tmp_path, name) for name in ("a", "b")]
        agents[0].load(package)
        agents[1].load(other)
        for _ in range(3):  # each throws the other's program out
            for agent in agents:
                agent.train(package)
        for agent in agents:
            assert isinstance(agent.next(), PackageLoaded)
            assert all(isinstance(agent.next(), JobDone) for _ in range(3))
    finally:
        pool.stop()


def test_a_pool_stops_in_the_middle_of_training(package: ModelPackage, tmp_path: Path) -> None:
    pool = WorkerPool(threads=2)
    agent = Agent(pool, tmp_path, "a")
    agent.load(package)
    agent.next()
    agent.train_for_long(package)
    before = threading.active_count()
    started = time.monotonic()
    pool.stop()
    assert time.monotonic() - started < 4
    assert threading.active_count() == before - 2


def test_a_plan_it_does_not_understand_is_declined_by_name(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    agent = Agent(pool, tmp_path, "a")
    agent.load(package)
    agent.next()
    agent.train(package, algorithm="fedmagic")
    failed = agent.next()
    assert isinstance(failed, JobFailed)
    assert failed.reason == "algorithm"
    agent.train(package)
    assert isinstance(agent.next(), JobDone)


def test_a_personal_layer_never_leaves_the_device_and_is_part_of_its_state(
    pool: WorkerPool, package: ModelPackage, tmp_path: Path
) -> None:
    """The line's slopes are shared, its offset is personal."""
    slopes, offset = package.spec.layout.parameters
    spec = msgspec.structs.replace(
        package.spec, layout=Layout((slopes,)), personal=Layout((offset,))
    )
    zeros = np.zeros(2, np.float32)
    own = ModelPackage(spec, package.program, zeros, np.full(1, 7.0, np.float32))
    agent = Agent(pool, tmp_path, "a")
    moved = [7.0]
    # Another package of the same layouts goes on with it.
    for source in ("", "exported again"):
        own = replace(own, spec=msgspec.structs.replace(spec, source=source))
        agent.load(own)
        assert isinstance(agent.next(), PackageLoaded)
        agent.train(own)
        done = agent.next()
        assert isinstance(done, JobDone)
        assert isinstance(done.result, LocalUpdate)
        assert {name: part.size for name, part in done.result.vectors.items()} == {"delta": 2}
        agent.state = done.result.state
        assert agent.state.personal is not None
        moved.append(float(agent.state.personal[0]))
    assert moved[1] != 7.0
    assert moved[2] - 7.0 == pytest.approx(2 * (moved[1] - 7.0), rel=1e-3)
