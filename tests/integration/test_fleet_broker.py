"""`fedge broker run DIR`: the fleet's Mosquitto, started again when it ends by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.security import devices
from broker.security.access_control import LISTS_FOLDER, PID_FILE
from broker.security.fleet import Fleet, utc_now
from broker.security.mosquitto.config import find_plugin
from broker.security.mosquitto.reload import pid_of
from tests.conftest import need
from tests.integration.fleet_folder import (
    REPOSITORY,
    command,
    fedge,
    listens,
    make_fleet,
    until,
)

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    need("mosquitto")
    return make_fleet(tmp_path / "fleet", plugin=find_plugin())


@pytest.fixture
def run(fleet: Fleet, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, running; its log is in `log`."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedge", "broker", "run", str(fleet.folder)],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=log,
        )
    assert until(lambda: listens(fleet.register.port), 20), (tmp_path / "log").read_text()
    yield process
    process.terminate()
    assert process.wait(20) == 0


def broker_pid(fleet: Fleet, other_than: int = 0) -> int:
    def found() -> int:
        pid = pid_of(fleet.broker_folder / PID_FILE)
        return pid if pid != other_than else 0

    return int(until(found, 20))


def test_a_broker_that_dies_is_started_again(
    fleet: Fleet, run: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    first = broker_pid(fleet)
    os.kill(first, signal.SIGKILL)
    second = broker_pid(fleet, other_than=first)
    assert second
    assert until(lambda: listens(fleet.register.port), 20)
    log = (tmp_path / "log").read_text()
    assert "Mosquitto was ended by signal 9 after" in log
    assert "started again in 0.5 s" in log
    assert "the running broker" in fedge("broker", "enrol", fleet.folder, "pi-1")
    run.terminate()
    assert run.wait(20) == 0
    assert not listens(fleet.register.port)
    assert not Path(f"/proc/{second}").exists()


def test_a_second_broker_of_the_same_fleet_is_refused(
    fleet: Fleet, run: subprocess.Popen[bytes]
) -> None:
    done = command("broker", "run", fleet.folder)
    assert done.returncode == 2
    assert f"runs already (process {broker_pid(fleet)})" in done.stderr
    assert run.poll() is None


def test_a_broker_that_cannot_start_is_not_tried_again(fleet: Fleet) -> None:
    config = fleet.broker_folder / "mosquitto.conf"
    config.write_text(config.read_text() + "nonsense true\n")
    done = command("broker", "run", fleet.folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Mosquitto does not start with ")


def test_each_start_leaves_one_list_of_revoked_certificates(fleet: Fleet) -> None:
    for number in range(3):
        devices.enrol(fleet, f"pi-{number}", utc_now(), None, 30)
        devices.revoke(fleet, f"pi-{number}", utc_now())
    lists = fleet.broker_folder / LISTS_FOLDER
    assert len(list(lists.iterdir())) == 4
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fedge", "broker", "run", str(fleet.folder)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert until(lambda: listens(fleet.register.port), 20)
        assert [path.suffix for path in lists.iterdir()] == [".r0"]
    finally:
        process.terminate()
        process.wait(20)


def test_a_broker_that_hears_of_no_change_is_told_later(
    fleet: Fleet, run: subprocess.Popen[bytes]
) -> None:
    said = fedge("broker", "enrol", fleet.folder, "pi-1", "--no-reload")
    assert "was left alone" in said
    assert "has the change" in fedge("broker", "sync", fleet.folder)
    assert "has it already" in fedge("broker", "sync", fleet.folder)
    assert run.poll() is None
