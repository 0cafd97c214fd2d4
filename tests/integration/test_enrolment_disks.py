"""A fleet's folder and a device's on a full disk, and power that is cut between two files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.enrolment.invitations import invite, redeem
from broker.security import devices
from broker.security.bundle import check_bundle, read_bundle
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from edge_agent.config import AgentConfig
from edge_agent.enrolment.enrol import enrol
from fedge.command import cli
from fedge.errors import ConfigError
from fedge.files import Account
from fedge.yaml_config import load_config
from tests.acceptance.federation import fill, small_disk
from tests.integration.enrolment import request_in
from tests.integration.fleet_folder import REPOSITORY

FULL = "cannot be written: No space left on device"
DAY = timedelta(days=1)


def make(folder: Path) -> Fleet:
    settings = FleetSettings("houses", ["localhost"], user=Account.current().name)
    return create_fleet(folder, settings, utc_now())


def content(folder: Path) -> dict[str, bytes]:
    """All files but the lock, which is empty."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != ".lock"}


def fedge(*arguments: str | Path) -> str:
    """What a command says on stdout."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: str | Path) -> str:
    """The one line of a command that failed."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        yield disk


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size_kib", [4, 40])
def test_init_on_a_full_disk_leaves_nothing(tmp_path: Path, size_kib: int) -> None:
    with small_disk(tmp_path / "disk", size_kib << 10) as disk:
        assert FULL in error_of("broker", "init", disk / "fleet", "--host", "localhost")
        assert list(disk.iterdir()) == []


def test_a_second_init_on_a_full_disk_succeeds(disk: Path) -> None:
    fedge("broker", "init", disk / "fleet", "--host", "localhost")
    fill(disk / "filler")
    before = content(disk / "fleet")
    assert "nothing was changed" in fedge("broker", "init", disk / "fleet", "--host", "localhost")
    assert content(disk / "fleet") == before


@pytest.mark.parametrize("options", [[], ["--token"]])
def test_a_device_that_cannot_be_stored_is_not_enrolled(disk: Path, options: list[str]) -> None:
    fleet = make(disk / "fleet")
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    fill(disk / "filler")
    before = content(disk / "fleet")
    assert FULL in error_of("broker", "enrol", disk / "fleet", "pi-2", *options)
    assert FULL in error_of("broker", "revoke", disk / "fleet", "pi-1")
    assert FULL in error_of("broker", "rotate", disk / "fleet", "pi-1", *options)
    assert content(disk / "fleet") == before
    (disk / "filler").unlink()
    fedge("broker", "enrol", disk / "fleet", "pi-2", *options)
    fedge("broker", "revoke", disk / "fleet", "pi-1")


def test_a_token_whose_use_cannot_be_stored_stays_valid(disk: Path, tmp_path: Path) -> None:
    fleet, request = make(disk / "fleet"), request_in(tmp_path / "pi")
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    fill(disk / "filler")
    before = content(disk / "fleet")
    with pytest.raises(ConfigError, match="No space left on device"):
        redeem(fleet, token.secret, request, utc_now())
    assert content(disk / "fleet") == before
    (disk / "filler").unlink()
    assert redeem(fleet, token.secret, request, utc_now()).is_new


def test_a_device_whose_disk_is_full_keeps_what_it_has(disk: Path, tmp_path: Path) -> None:
    fleet = make(tmp_path / "fleet")
    bundle = devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    fill(disk / "filler")
    assert FULL in error_of("agent", "enrol", bundle, "--dir", disk / "pi")
    assert content(disk / "pi") == {}
    (disk / "filler").unlink()
    fedge("agent", "enrol", bundle, "--dir", disk / "pi")
    renewed = devices.rotate(fleet, "pi-1", utc_now(), None, 30)
    fill(disk / "filler")
    before = content(disk / "pi")
    assert FULL in error_of("agent", "enrol", renewed, "--dir", disk / "pi")
    assert content(disk / "pi") == before
    (disk / "filler").unlink()
    assert "certificates renewed" in fedge("agent", "enrol", renewed, "--dir", disk / "pi")


# --- a power cut ----------------------------------------------------------------------------------


#: Modules that write a fleet's files.
FLEET = ("broker.security.create_fleet", "broker.security.fleet", "broker.security.fleet_layout")


def cut_at_write(number: int, modules: Sequence[str], *arguments: str | Path) -> None:
    """Runs a command whose process is gone in the middle of the file of this number."""
    code = (
        f"import importlib, itertools, os, sys, fedge.files as files\n"
        f"left = itertools.count({number}, -1)\n"
        "def write_whole_or_end(path, data, *rest, **more):\n"
        "    if next(left) == 0:\n"
        "        path.with_name(f'.{path.name}.partial').write_bytes(data[:len(data) // 2])\n"
        "        os._exit(9)\n"
        "    files.write_whole(path, data, *rest, **more)\n"
        f"for name in {tuple(modules)}:\n"
        "    importlib.import_module(name).write_whole = write_whole_or_end\n"
        "from fedge.command import main; main()\n"
    )
    run = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(run, cwd=REPOSITORY, env=environment, capture_output=True, timeout=40)
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize("number", [0, 9])
def test_an_interrupted_init_can_be_repeated(tmp_path: Path, number: int) -> None:
    arguments = ("broker", "init", tmp_path / "fleet", "--host", "localhost")
    cut_at_write(number, FLEET, *arguments)
    assert not (tmp_path / "fleet").exists()
    fedge(*arguments)
    devices.enrol(Fleet(tmp_path / "fleet"), "pi-1", utc_now(), None, 30)


@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupted_enrolment_can_be_repeated(tmp_path: Path, number: int) -> None:
    """Whatever is on disk by then; the register is the last file, and what counts."""
    fleet = make(tmp_path / "fleet")
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    cut_at_write(number, FLEET, "broker", "enrol", fleet.folder, "pi-2")
    assert [r.agent_id for r in Fleet(fleet.folder).register.devices] == ["pi-1"]
    fedge("broker", "enrol", fleet.folder, "pi-2")
    bundle = fleet.folder / "bundles" / "pi-2.bundle"
    check_bundle(read_bundle(bundle), "bundle")
    rules = (fleet.broker_folder / "access.acl").read_text()
    # Each certificate has a name of its own; that of the interrupted one has no rights.
    assert len(re.findall(r"(?m)^user pi-2\.[0-9a-f]+$", rules)) == 1


@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupted_joining_can_be_repeated(tmp_path: Path, number: int) -> None:
    bundle = devices.enrol(make(tmp_path / "fleet"), "pi-1", utc_now(), None, 30)
    cut_at_write(
        number, ["edge_agent.enrolment.enrol"], "agent", "enrol", bundle, "--dir", tmp_path / "pi"
    )
    assert not (tmp_path / "pi" / "agent.yaml").exists()
    _, is_new = enrol(bundle, tmp_path / "pi", None, "")
    assert is_new
    assert load_config(tmp_path / "pi" / "agent.yaml", AgentConfig).agent_id == "pi-1"
