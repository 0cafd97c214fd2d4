"""`fedge fleet simulate` with cohorts, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.acceptance.federation import children_of, eventually
from tests.unit.fleet.batched.fleets import EXAMPLES

SCENARIO = EXAMPLES / "house_price.yaml"
#: Device states, several parts, rounds that are evaluated.
CHANGES = (
    "--agents=300",
    "--rounds=40",
    "--mode=bytes",
    "--set=codec=int8",
    "--set=show=rounds",
    "--set=baselines={}",
)


def command(out: Path, *more: str) -> list[str]:
    simulate = [sys.executable, "-P", "-m", "fedge", "fleet", "simulate", str(SCENARIO)]
    return [*simulate, *CHANGES, "--out", str(out), *more]


def run(out: Path, *more: str) -> dict[str, Any]:
    done = subprocess.run(command(out, *more), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def theta(out: Path) -> bytes:
    found: bytes = np.load(out / "model" / "initial.npy").tobytes()
    return found


def test_an_interrupted_simulation_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert len(whole["rounds"]) == 40
    assert not (tmp_path / "whole" / "state").exists()

    cut = tmp_path / "cut"
    with subprocess.Popen(
        command(cut), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.split()[:1] == ["3"]:
                    process.send_signal(signal.SIGINT)
                    break
            told = process.stdout.read()
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
    assert "--resume" in told
    so_far = json.loads((cut / "report.json").read_text())
    assert so_far["status"] == "interrupted"
    assert 3 <= len(so_far["rounds"]) < 40

    resumed = run(cut, "--resume")
    assert resumed["status"] == "complete"
    assert theta(cut) == theta(tmp_path / "whole")
    assert resumed["rounds"] == whole["rounds"]
    assert resumed["final"] == whole["final"]


def test_the_way_it_is_simulated_is_said_and_stands_in_the_report(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, "--mode=arrays", "--kernel=vectorized", "--processes=2", "--rounds=2"),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "mode arrays: as asked" in done.stdout
    assert "kernel: vectorized" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["run"]["kind"] == "batched"
    assert report["run"]["options"]["mode"] == "arrays"
    assert report["runtime"].endswith("kernel vectorized")


def test_a_feature_of_single_messages_is_refused_with_cohorts(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "--trace"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--mode bytes: --trace needs every message; take --mode exact" in done.stderr


@contextmanager
def begun(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A simulation in two processes, after its first round; killed at the end."""
    more = ("--processes=2", "--rounds=100000")
    with subprocess.Popen(
        command(out, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.split()[:1] == ["1"]:
                    break
            yield process
        finally:
            process.kill()


def test_two_simulations_do_not_share_a_folder(tmp_path: Path) -> None:
    with begun(tmp_path) as process:
        other = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=60)
        assert other.returncode == 2
        assert f"is in use by process {process.pid}: wait for its end" in other.stderr
        assert process.poll() is None
    found = run(tmp_path, "--rounds=2")
    assert found["status"] == "complete"


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_processes_that_work_end_with_the_one_that_was_killed(tmp_path: Path) -> None:
    with begun(tmp_path) as process:
        children = children_of(process.pid)
        assert len(children) >= 2
        assert all(map(is_running, children))
    eventually("they end", lambda: not any(map(is_running, children)))
