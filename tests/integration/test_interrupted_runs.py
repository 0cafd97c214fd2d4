"""Interrupted runs keep report and model, and go on to the end of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fedge.errors import ConfigError, FleetError
from fleet.cli.main import cli
from fleet.experiments.results import load_report
from fleet.live import LiveWatcher
from fleet.participants import Participants
from fleet.runs.resume import RUN_FILE, RunInterrupted
from fleet.runs.run import RunOptions, run_scenario
from fleet.virtual.simulate import SimulationOptions, simulate_scenario
from models.package.package import load_package
from tests.conftest import need

SCENARIO = Path(__file__).parents[2] / "examples/house_price.yaml"
ROUNDS = 5
#: Rows in random order and int8 rounding: what is random in training has to go on too.
CHANGES = {
    "agents": 4,
    "seed": 3,
    "federation.rounds": ROUNDS,
    "federation.codec": "int8",
    "federation.training.batch_size": 512,
    "federation.training.learning_rate": 0.05,
}


class Interrupting:
    """Watcher that is interrupted, as by Ctrl-C, when a round has ended.

    Args:
        after: the round; 0: never.
        again: also when the first interruption is noted.
        baseline: when a baseline was trained.
    """

    def __init__(self, after: int = 0, *, again: bool = False, baseline: bool = False) -> None:
        self.after, self.again, self.at_baseline = after, again, baseline
        self.rounds: list[int] = []
        self.notes: list[str] = []

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        """See `Watcher`."""

    def round(self, record: RoundRecord) -> None:
        self.rounds.append(record.round_id)
        if record.round_id == self.after:
            signal.raise_signal(signal.SIGINT)

    def waiting(self, eligible: int, wanted: int) -> None:
        """See `Watcher`."""

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.again and text.startswith("interrupted"):
            signal.raise_signal(signal.SIGINT)

    def working(self, what: str, done: int, of: int) -> None:
        if self.at_baseline:
            signal.raise_signal(signal.SIGINT)


def simulated(out: Path, watcher: Any, **options: Any) -> dict[str, Any]:
    given = {"changes": CHANGES} | options
    return simulate_scenario(SCENARIO, SimulationOptions(out, **given), watcher)


def theta_in(out: Path) -> Any:
    return load_package(out / "model").initial


def written(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_an_interrupted_simulation_keeps_its_rounds_and_its_model(tmp_path: Path) -> None:
    watcher = Interrupting(after=2)
    with pytest.raises(RunInterrupted) as interrupted:
        simulated(tmp_path, watcher)
    report = written(tmp_path)
    assert report == json.loads(json.dumps(interrupted.value.report))
    assert (report["status"], report["stopped"]) == ("interrupted", "interrupted")
    assert [record["status"] for record in report["rounds"]] == ["committed"] * 2
    assert report["final"]["version"] == 2
    assert report["final"]["loss"] == report["rounds"][1]["loss"]
    assert report["baselines"] == {}
    assert theta_in(tmp_path).any()
    assert watcher.notes == ["interrupted: writing the report; interrupt again to end at once"]
    assert load_report(tmp_path).final["version"] == 2


def test_a_simulation_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole = simulated(tmp_path / "whole", Interrupting())
    with pytest.raises(RunInterrupted):
        simulated(tmp_path / "part", Interrupting(after=3))
    assert (theta_in(tmp_path / "part") != theta_in(tmp_path / "whole")).any()
    resumed = simulated(tmp_path / "part", Interrupting(), resume=True)
    assert len(resumed["run"].pop("resumed")) == 1
    assert whole["run"].pop("resumed") == []
    for report in (whole, resumed):
        del report["run"]["started"], report["run"]["options"]
    assert resumed == whole
    for name in ("model/initial.npy", "trace.jsonl"):
        part, all_of_it = (tmp_path / each / name for each in ("part", "whole"))
        assert part.read_bytes() == all_of_it.read_bytes(), name


def test_interrupted_again_a_simulation_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupted:
        simulated(tmp_path, Interrupting(after=2, again=True))
    assert not isinstance(interrupted.value, RunInterrupted)
    assert not (tmp_path / "report.json").exists()


def test_interrupted_while_baselines_are_trained_a_simulation_has_all_its_rounds(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunInterrupted):
        simulated(tmp_path, Interrupting(baseline=True))
    report = written(tmp_path)
    assert (report["status"], report["stopped"]) == ("interrupted", "rounds")
    assert len(report["rounds"]) == ROUNDS
    assert report["baselines"] == {}
    resumed = simulated(tmp_path, Interrupting(), resume=True)
    assert resumed["status"] == "complete"
    assert resumed["baselines"]
    assert resumed["final"] == report["final"]


def test_more_rounds_may_be_asked_for_but_nothing_else_may_change(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted):
        simulated(tmp_path, Interrupting(after=2))
    rate = CHANGES | {"federation.training.learning_rate": 0.5}
    with pytest.raises(
        ConfigError,
        match=r"^--resume: the run in .* was begun with federation.training.learning_rate 0.05, "
        r"now it is 0.5; run it as it was, or name another folder with --out$",
    ):
        simulated(tmp_path, Interrupting(), changes=rate, resume=True)
    assert written(tmp_path)["status"] == "interrupted"  # it is still there
    longer = CHANGES | {"federation.rounds": ROUNDS + 1}
    assert len(simulated(tmp_path, Interrupting(), changes=longer, resume=True)["rounds"]) == 6


def fleet(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Function that makes the next runs of the command be interrupted after a round."""
    original = LiveWatcher.round

    def arrange(number: int) -> None:
        def told(self: LiveWatcher, record: RoundRecord) -> None:
            original(self, record)
            if record.round_id == number:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(LiveWatcher, "round", told)

    handler = signal.getsignal(signal.SIGTERM)
    yield arrange
    signal.signal(signal.SIGTERM, handler)


def test_the_command_says_how_to_go_on_and_remembers_its_options(
    tmp_path: Path, interrupted_after: Callable[[int], None]
) -> None:
    faults, out = tmp_path / "bad day.yaml", tmp_path / "out"
    faults.write_text("cut: 0.01\n")
    words = ["simulate", str(SCENARIO), "--faults", str(faults), "--no-trace", "--out", str(out)]
    interrupted_after(2)
    result = fleet(*words, "--agents", "4", "--rounds", "4", "--set", "codec=int8")
    assert result.exit_code == 130, result.output
    assert "interrupted after 2 of 4 rounds; report: " in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("to go on: ")]
    assert line == (
        f"to go on: fedge fleet simulate {SCENARIO} --out {out} --faults '{faults}' --no-trace "
        "--resume"
    )
    interrupted_after(0)
    assert fleet("simulate", str(SCENARIO), "--out", str(out), "--resume").exit_code == 2
    result = fleet(*words, "--resume")
    assert result.exit_code == 0, result.output
    report = written(out)
    assert (report["status"], len(report["rounds"]), report["agents"]) == ("complete", 4, 4)
    assert report["codec"] == "int8"


def test_interrupted_before_a_round_is_committed_a_run_leaves_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    watcher = Interrupting()
    monkeypatch.setattr(watcher, "begin", begin)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        simulated(tmp_path, watcher)
    assert not isinstance(interrupted.value, RunInterrupted)
    assert not (tmp_path / "report.json").exists()
    assert (tmp_path / RUN_FILE).exists()
    assert simulated(tmp_path, Interrupting(), resume=True)["status"] == "complete"


def children_with(word: bytes) -> list[int]:
    """The child processes of this one with a word in their command line."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [int(pid) for pid, line in lines.items() if word in line]


def test_interrupted_again_a_run_ends_at_once_with_all_its_processes(tmp_path: Path) -> None:
    need("mosquitto")
    options = RunOptions(tmp_path, CHANGES, "mosquitto", hosts=1)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        run_scenario(SCENARIO, options, Interrupting(after=1, again=True))
    assert not isinstance(interrupted.value, RunInterrupted)
    assert not (tmp_path / "report.json").exists()
    assert children_with(bytes(tmp_path)) == []


class Killing(Interrupting):
    """Watcher that kills the coordinator when a round has ended."""

    def round(self, record: RoundRecord) -> None:
        self.rounds.append(record.round_id)
        if record.round_id == self.after:
            (coordinator,) = children_with(b"\0coordinator\0run\0")
            os.kill(coordinator, signal.SIGKILL)


def test_a_run_whose_coordinator_is_killed_keeps_its_report_and_goes_on(tmp_path: Path) -> None:
    need("mosquitto")
    options = RunOptions(tmp_path, CHANGES, "mosquitto", hosts=1)
    with pytest.raises(FleetError, match=r"ended early: .*; report and model so far are in .*, --"):
        run_scenario(SCENARIO, options, Killing(after=2))
    report = written(tmp_path)
    assert (report["status"], report["stopped"]) == ("interrupted", "failed")
    assert report["final"]["version"] >= 1
    assert theta_in(tmp_path).any()
    resumed = run_scenario(SCENARIO, replace(options, resume=True), Interrupting())
    assert (resumed["status"], resumed["final"]["version"]) == ("complete", ROUNDS)


def test_an_interrupted_run_of_real_processes_goes_on(tmp_path: Path) -> None:
    need("mosquitto")

    def run(out: str, watcher: Interrupting, *, resume: bool = False) -> dict[str, Any]:
        options = RunOptions(tmp_path / out, CHANGES, "mosquitto", hosts=1, resume=resume)
        return run_scenario(SCENARIO, options, watcher)

    whole = run("whole", Interrupting())
    with pytest.raises(RunInterrupted):
        run("part", Interrupting(after=2))
    report = written(tmp_path / "part")
    done = len(report["rounds"])
    assert 2 <= done < ROUNDS
    assert (report["status"], report["baselines"]) == ("interrupted", {})
    assert theta_in(tmp_path / "part").any()
    watcher = Interrupting()
    resumed = run("part", watcher, resume=True)
    assert watcher.notes == [f"going on after {done} committed rounds"]
    assert watcher.rounds[-1] == ROUNDS
    assert watcher.rounds[0] >= 2
    assert resumed["status"] == "complete"
    assert resumed["baselines"]
    assert [record["round_id"] for record in resumed["rounds"]] == list(range(1, ROUNDS + 1))
    assert resumed["final"]["seconds"] > 0
    # Summed in the order of arrival, which may change the last bit of a parameter.
    np.testing.assert_allclose(theta_in(tmp_path / "part"), theta_in(tmp_path / "whole"), rtol=1e-5)
    assert whole["final"]["version"] == resumed["final"]["version"]
