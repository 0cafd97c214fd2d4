"""What the threads that train take from the device."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker.protocol.messages import BlobRef, Cohort, RoundPlan
from edge_agent import worker
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
from edge_agent.machine.limits import LimitsConfig
from edge_agent.machine.pending_update import LocalReport, LocalUpdate
from edge_agent.worker import Worker, WorkerPool
from models.package.package import ModelPackage
from models.zoo import load_zoo

PLAN = RoundPlan(
    session="s",
    coordinator_instance="c",
    round_id=1,
    state="open",
    version=0,
    blobs={"weights": BlobRef(sha256="0" * 64, size=12, chunks=1)},
    package="0" * 64,
    fingerprint="0" * 16,
    cohort=Cohort(),
    training={"max_steps": 3, "epochs": 3, "learning_rate": 1e-6},
)


class Device:
    """A pool of one thread and its worker."""

    def __init__(self, pool: WorkerPool, folder: Path, limits: LimitsConfig) -> None:
        x = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
        np.savez(folder / "data.npz", features=x, y=x.sum(1))
        data = DataConfig(path="data.npz", test_fraction=0.5)
        config = AgentConfig(federation="f", agent_id="a", data=data, limits=limits)
        self.events: list[Event] = []
        self._arrived = threading.Condition()
        self.package: ModelPackage = load_zoo("house_price")
        self.worker: Worker = pool.worker(config, folder, self._take)

    def _take(self, event: Event) -> None:
        with self._arrived:
            self.events.append(event)
            self._arrived.notify()

    def load(self) -> Event:
        self.worker.submit(LoadPackage(self.package.digest, self.package.wire))
        return self.next()

    def start(self, phase: str = "train") -> None:
        plan = msgspec.structs.replace(PLAN, phase=phase)
        blobs = {"weights": self.package.initial}
        self.worker.submit(StartJob(plan, blobs, DeviceState()))

    def next(self) -> Event:
        with self._arrived:
            assert self._arrived.wait_for(lambda: self.events, 20)
            return self.events.pop(0)

    def is_silent(self) -> bool:
        time.sleep(0.3)
        return not self.events


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    pool.stop()


@pytest.mark.parametrize(("phase", "kind"), [("train", LocalUpdate), ("evaluate", LocalReport)])
def test_paused_work_waits_and_goes_on(
    pool: WorkerPool, tmp_path: Path, phase: str, kind: type
) -> None:
    device = Device(pool, tmp_path, LimitsConfig())
    assert isinstance(device.load(), PackageLoaded)
    device.worker.pause(paused=True)
    device.start(phase)
    assert device.is_silent()
    device.worker.pause(paused=False)
    done = device.next()
    assert isinstance(done, JobDone)
    assert isinstance(done.result, kind)


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_paused_work_can_be_given_up(pool: WorkerPool, tmp_path: Path, phase: str) -> None:
    device = Device(pool, tmp_path, LimitsConfig())
    device.load()
    device.worker.pause(paused=True)
    device.start(phase)
    device.worker.cancel()
    failure = device.next()
    assert isinstance(failure, JobFailed)
    assert failure.detail == "cancelled"


def test_a_pool_that_stops_waits_for_no_paused_work(tmp_path: Path) -> None:
    pool = WorkerPool()
    device = Device(pool, tmp_path, LimitsConfig())
    device.load()
    device.worker.pause(paused=True)
    device.start()
    assert device.is_silent()
    pool.stop()
    assert isinstance(device.next(), JobFailed)


def test_measuring_in_pieces_gives_what_measuring_at_once_gives(
    pool: WorkerPool, tmp_path: Path
) -> None:
    device = Device(pool, tmp_path, LimitsConfig(cpu_share=0.9))
    device.load()
    device.start("evaluate")
    found = device.next()
    assert isinstance(found, JobDone)
    assert isinstance(found.result, LocalReport)
    assert found.result.sums.weight == 300  # more than one batch of 256


def test_only_the_threads_that_train_give_way(pool: WorkerPool, tmp_path: Path) -> None:
    before = {thread.native_id for thread in threading.enumerate()}
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with_limits = WorkerPool()
    trainers = {thread.native_id for thread in threading.enumerate()} - before
    try:
        Device(with_limits, tmp_path, LimitsConfig(nice=own + 5)).load()
        found = {os.getpriority(os.PRIO_PROCESS, number or 0) for number in trainers}
    finally:
        with_limits.stop()
    assert found == {own + 5}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_where_a_sandbox_forbids_it_training_goes_on_all_the_same(
    pool: WorkerPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forbidden(*_: int) -> None:  # as under `SystemCallFilter=~@resources`
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    device = Device(pool, tmp_path, LimitsConfig(nice=19))
    assert isinstance(device.load(), PackageLoaded)
    device.start()
    assert isinstance(device.next(), JobDone)
    assert caplog.text.count("set Nice=19 in the unit") == 1


def test_a_model_above_the_ceiling_is_refused_and_never_loaded(
    pool: WorkerPool, tmp_path: Path
) -> None:
    device = Device(pool, tmp_path, LimitsConfig(max_memory_bytes=1 << 20))
    refused = device.load()
    assert isinstance(refused, PackageFailed)
    assert (refused.reason, refused.needs_bytes) == ("memory", 0)
    assert "max_memory_bytes (1 MB)" in refused.detail
    device.start()
    failure = device.next()
    assert isinstance(failure, JobFailed)
    assert failure.detail == "no model is loaded"


def test_a_model_that_does_not_fit_now_says_when_it_would(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "available_bytes", lambda: 5_000_000)  # another machine's
    device = Device(pool, tmp_path, LimitsConfig())
    refused = device.load()
    assert isinstance(refused, PackageFailed)
    assert refused.reason == "memory"
    assert refused.needs_bytes > 5_000_000
    monkeypatch.setattr(worker, "available_bytes", lambda: refused.needs_bytes)
    assert isinstance(device.load(), PackageLoaded)
