"""Disks that are full, and files that rotted: real processes go on, or say what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.local.broker import LocalBroker
from tests.acceptance.federation import Federation, eventually, fill, running, small_disk
from tests.conftest import need

#: A log line, or the one line that a command ends with; anything else would be a traceback.
_LINE = re.compile(r"\d{4}-\d\d-\d\d .*|error: .*|INFO: Created TensorFlow Lite .*")


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


def check_no_traceback(federation: Federation, *names: str) -> None:
    for name in names:
        for line in federation.said(name).splitlines():
            assert _LINE.fullmatch(line), f"{name}: {line}"


def test_an_agent_whose_disk_is_full_goes_on_with_a_warning(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(tmp_path, broker.port, coordinator={"rounds": 3}).write()
    with running(federation), small_disk(federation.state("pi-1"), 64 << 10) as disk:
        fill(disk / "filler")
        federation.start_all()
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(3)
        said = federation.said("pi-1")
        for number in range(1, 4):
            assert f"round {number}: update counted" in said
        assert said.count("No space left on device; the update is not kept on disk") == 3
        assert "nothing pending" not in said, "the receipt is no trouble"
        check_no_traceback(federation, "pi-1")


def test_a_coordinator_whose_disk_is_full_ends_and_goes_on_when_there_is_space(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(tmp_path, broker.port, coordinator={"rounds": 6}).write()
    with running(federation), small_disk(federation.state("coordinator"), 1 << 20) as disk:
        federation.start_all()
        federation.await_version(2)
        fill(disk / "filler")
        assert federation.ended("coordinator") == 5
        last = federation.said("coordinator").splitlines()[-1]
        assert last.startswith("error: ")
        assert "full" in last or "No space left on device" in last
        assert "mend the disk and start again" in last
        confirmed = federation.version()
        (disk / "filler").unlink()
        federation.start("coordinator")
        assert federation.ended("coordinator") == 0
        assert 2 <= confirmed < 6
        assert f"going on from version {confirmed}" in federation.said("coordinator")
        federation.check_nothing_lost(6)
        check_no_traceback(federation, "coordinator", *federation.names)


# -- files that rotted --------------------------------------------------------------------------


def flip_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(16, len(data), max(1, len(data) // 50)):
        data[place] ^= 0xFF
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_content(path: Path) -> None:
    path.write_bytes(b"this was never a file of ours\n" * 100)


damages = pytest.mark.parametrize("damage", [flip_bytes, truncate, other_content])


@damages
def test_a_damaged_store_ends_the_coordinator_with_one_line_that_says_what_to_do(
    tmp_path: Path, broker: LocalBroker, damage: Callable[[Path], None]
) -> None:
    settings = {"rounds": 2}
    federation = Federation(tmp_path, broker.port, coordinator=settings).write()
    with running(federation):
        federation.start_all()
        assert federation.ended("coordinator") == 0
        before = federation.said("coordinator")
        state = federation.state("coordinator")
        store = state / "federation.sqlite"
        kept = store.read_bytes()
        damage(store)
        federation.configure("coordinator", rounds=3)
        for _ in range(2):  # and again: it destroys nothing by trying
            federation.start("coordinator")
            assert federation.ended("coordinator") == 2
        said = federation.said("coordinator").removeprefix(before)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 2
        assert all(str(store.parent) in line and "move" in line for line in errors), errors
        check_no_traceback(federation, "coordinator")
        # What the line says, done: the federation begins anew.
        state.rename(state.with_name("aside"))
        federation.start("coordinator")
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(3)
        # Or the file of the backup, put back: it goes on.
        shutil.rmtree(state)
        state.mkdir()
        store.write_bytes(kept)
        federation.start("coordinator")
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(3)


@damages
def test_an_agent_with_damaged_files_says_what_is_lost_and_takes_part(
    tmp_path: Path, broker: LocalBroker, damage: Callable[[Path], None]
) -> None:
    federation = Federation(tmp_path, broker.port, coordinator={"rounds": 4}).write()
    with running(federation):
        federation.start_all()
        federation.await_version(1)
        state = federation.state("pi-0")
        # The round may be committed before its receipt has come.
        eventually("an update is settled", (state / "settled.bin").exists)
        federation.kill("pi-0")
        (state / "pending.bin").write_bytes((state / "settled.bin").read_bytes())
        for name in ("pending.bin", "settled.bin"):
            damage(state / name)
        federation.start("pi-0")
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(4)
        said = federation.said("pi-0")
        assert "pending.bin is damaged and set aside, an update without a receipt is lost" in said
        lost = "settled.bin is damaged and set aside, the device's state of earlier rounds is lost"
        assert lost in said
        assert (state / "pending.bin.damaged").exists()
        check_no_traceback(federation, "pi-0")


@damages
def test_a_damaged_scale_keeps_one_agent_out_with_the_way_out_and_no_crash_loop(
    tmp_path: Path, broker: LocalBroker, damage: Callable[[Path], None]
) -> None:
    federation = Federation(tmp_path, broker.port, names=("pi-0",), coordinator={"rounds": 1})
    federation.write()
    data = {**federation.settings("pi-0")["data"], "normalise": "device"}
    federation.configure("pi-0", data=data)
    with running(federation):
        federation.start_all()
        assert federation.ended("coordinator") == 0
        federation.kill("pi-0")
        scale = federation.state("pi-0") / "normalisation.json"
        damage(scale)
        federation.configure("coordinator", rounds=2)
        federation.start("coordinator", "pi-0")
        eventually("it says so", lambda: "cannot take part (no_data)" in federation.said("pi-0"))
        assert "delete the file to measure the scale again" in federation.said("pi-0")
        federation.kill("pi-0")
        scale.unlink()
        federation.start("pi-0")
        assert federation.ended("coordinator") == 0
        check_no_traceback(federation, "pi-0", "coordinator")
