"""Devices that rest: in quiet hours, and when they get hot in the middle of a training."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.local.broker import LocalBroker
from coordinator.config import CoordinatorConfig
from coordinator.report import status_text
from coordinator.storage.store import Store
from edge_agent.config import AgentConfig
from edge_agent.device import LinuxDevice
from edge_agent.service import AgentService, make_agent, make_link
from edge_agent.worker import WorkerPool
from fedge.yaml_config import load_config
from tests.acceptance.federation import Federation, eventually, running
from tests.conftest import need


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


def status(federation: Federation) -> str:
    """What `fedge coordinator status` shows."""
    if not federation.state("coordinator").exists():
        return ""
    config = load_config(federation.config("coordinator"), CoordinatorConfig)
    store = Store.open_existing(federation.state("coordinator"))
    try:
        return status_text(store, config)
    finally:
        store.close()


def test_the_others_go_on_while_one_has_its_quiet_hours(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(
        tmp_path,
        broker.port,
        coordinator={
            "rounds": 3,
            "cohort": {"at_least": 2},
            "round": {"minimum": 2, "deadline_s": 30},
            "start": {"agents": 2},
        },
    ).write()
    all_day = {"quiet_hours": ["00:00-12:00", "12:00-00:00"]}
    federation.configure("pi-2", limits=all_day)
    with running(federation):
        federation.start("pi-2")
        eventually("it rests", lambda: "paused: quiet_hours" in federation.said("pi-2"))
        federation.start("coordinator", "pi-0", "pi-1")
        assert federation.ended("coordinator") == 0
        assert "training on" not in federation.said("pi-2")
    for record in federation.records():
        assert (record.asked, record.reported) == (2, 2)
    command = ["coordinator", "status", "--config", str(federation.config("coordinator"))]
    done = subprocess.run(
        [*federation.fedge("coordinator"), *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "1 of them paused" in done.stdout
    (line,) = [text for text in done.stdout.splitlines() if "pi-2" in text]
    assert "paused: quiet_hours: " in line


class HotDevice:
    """An agent in this process, on a machine whose thermometer is a file of ours."""

    def __init__(self, federation: Federation, name: str, root: Path) -> None:
        self._thermometer = root / "sys/class/thermal/thermal_zone0/temp"
        self._thermometer.parent.mkdir(parents=True)
        self.set(40)
        config = load_config(federation.config(name), AgentConfig)
        base = federation.config(name).parent
        self._pool = WorkerPool()
        self.agent = make_agent(config, base)
        self._link = make_link(self.agent, config, base)
        device = LinuxDevice(root)
        self._service = AgentService(
            self.agent, self._link, config, base, self._pool, device=device
        )

    def set(self, celsius: int) -> None:
        """The next reading."""
        self._thermometer.write_text(f"{celsius * 1000}\n")

    def serve(self, what: str, found: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Until it is so."""
        end_s = time.monotonic() + timeout_s
        while not found():
            assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
            self._service.take(self._link.poll(min(0.05, self._service.pause_s())))

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the block lasts."""
        self._service.begin()
        try:
            yield
        finally:
            self._service.end()
            self._link.close()
            self._pool.stop()


def test_a_training_pauses_while_the_device_is_hot_and_counts_in_the_end(
    tmp_path: Path, broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    federation = Federation(
        tmp_path,
        broker.port,
        names=("pi-0",),
        coordinator={
            "rounds": 1,
            "training": {"epochs": 100, "batch_size": 1, "learning_rate": 1e-5},
            "round": {"deadline_s": 100},
        },
        agent={"limits": {"max_temperature_c": 70, "check_s": 1, "cpu_share": 0.5}},
    ).write()
    with running(federation):
        federation.start("coordinator")
        device = HotDevice(federation, "pi-0", tmp_path / "root")
        with device.running():
            device.serve("it trains", lambda: "round 1: training" in caplog.text)
            device.set(85)
            device.serve("it says so", lambda: "paused: too_hot: 85" in status(federation))
            hot_s = time.monotonic()
            device.serve("a while", lambda: time.monotonic() > hot_s + 1.0)
            assert federation.version() == 0
            assert federation.told("round") == []  # it is waited for: nobody else is there
            device.set(60)
            device.serve("it counts", lambda: federation.version() == 1)
        assert federation.ended("coordinator") == 0
    (record,) = federation.records()
    assert (record.reported, record.declined) == (1, {})
    assert "the pause is over" in caplog.text
