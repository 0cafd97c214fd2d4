"""`fedge experiment` as a user runs it: grids, failures, interruption, tables, pictures."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedge.files import claimed
from fleet.experiments.execution.job import execute
from fleet.experiments.execution.plan import make_plan
from fleet.experiments.execution.run import prepare
from fleet.experiments.execution.workers import Began, Ended, run_jobs
from fleet.experiments.experiment import load_experiment
from fleet.experiments.results import load_report
from tests.conftest import gone_within

EXAMPLES = Path(__file__).parents[2] / "examples"
HOUSE = str(EXAMPLES / "house_price.yaml")
FEDGE = (sys.executable, "-P", "-m", "fedge")


def write_grid(folder: Path, **grid: Any) -> Path:
    path = folder / "tiny.yaml"
    tiny = {"scenario": HOUSE, "options": {"agents": 2}, "set": {"baselines": {}}}
    path.write_text(yaml.safe_dump(tiny | grid, sort_keys=False))
    return path


def fedge(*words: str | Path, code: int = 0) -> str:
    command = [*FEDGE, "experiment", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout + done.stderr


def reports(folder: Path) -> dict[str, Any]:
    """All reports by folder, without when and where they were made."""
    found = {}
    for path in sorted(folder.glob("runs/*/*/report.json")):
        report = json.loads(path.read_text())
        assert report.pop("run")["files"]["data"]["sha256"]
        found[str(path.parent.relative_to(folder))] = report
    return found


def test_a_grid_is_run_shown_compared_and_drawn(tmp_path: Path) -> None:
    grid = write_grid(
        tmp_path,
        grid={"training.learning_rate": [0.1, 0.45]},
        seeds=2,
        target={"metric": "mae", "value": 0.7},
        hooks=["tensorboard"],
        set={"rounds": 2, "baselines": {}},
    )
    out = tmp_path / "out"
    said = fedge("run", grid, "--out", out)
    assert "4 runs done" in said
    assert len(reports(out)) == 4
    run = out / "runs/learning_rate=0.1/1"
    assert "2 rounds in" in (run / "log.txt").read_text()
    written = yaml.safe_load((run / "configuration.yaml").read_text())
    assert written["seed"] == 1
    assert written["configuration"]["federation"]["training"]["learning_rate"] == 0.1
    assert len(list(out.glob("tensorboard/*/*/events*"))) >= 4

    table = json.loads(fedge("table", out, "--json", "--csv", tmp_path / "t.csv").splitlines()[0])
    assert [row["final"]["n"] for row in table["cases"]] == [2, 2]
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert {row["training.learning_rate"] for row in rows} == {"0.1", "0.45"}
    assert "2 of 2 seeds" in fedge("compare", out, "--baseline", "learning_rate=0.1")
    fedge("plot", out, "--kind", "bytes", "--out", tmp_path / "bytes.svg")
    assert (tmp_path / "bytes.svg").read_text().startswith("<?xml")


def interrupt_after_one(words: Sequence[str | Path], number: int) -> str:
    """Runs a command until one run is done, and interrupts it; returns what it said."""
    command = [*FEDGE, "experiment", *map(str, words)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "1/4" in line:
                os.killpg(process.pid, number)  # as a terminal does: to the children too
                break
        said += process.stdout.read()
        assert process.wait(60) == 130, said
        return said


def test_an_interrupted_experiment_goes_on_and_ends_as_if_never_interrupted(
    tmp_path: Path,
) -> None:
    cases = [{"name": "short", "rounds": 2}, {"name": "long", "rounds": 80}]
    grid = write_grid(tmp_path, cases=cases, seeds=2)
    out, whole = tmp_path / "out", tmp_path / "whole"
    said = interrupt_after_one(["run", grid, "--out", out, "--jobs", "1"], signal.SIGINT)
    assert "3 runs left; the same command without --fresh goes on with them" in said
    assert list(reports(out)) == ["runs/short/0"]
    statuses = {run.folder: run.status for run in load_experiment(out).index.runs}
    assert statuses["runs/short/0"] == "done"
    assert statuses["runs/long/0"] == "waiting"

    assert "1 of them done already" in fedge("run", grid, "--out", out)
    fedge("run", grid, "--out", whole)
    assert reports(out) == reports(whole)
    for path in out.glob("runs/*/*/model/initial.npy"):
        assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes()

    # What was done is left out, unless its configuration is another one now.
    assert prepare(make_plan(grid), out).jobs == ()
    assert len(prepare(make_plan(grid, {"training.learning_rate": 0.2}), out).jobs) == 4
    assert len(prepare(make_plan(grid), out, fresh=True).jobs) == 4


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    # The scenario has no rows for so many agents, which is found when they are dealt out.
    cases = [{"name": "good", "agents": 2}, {"name": "many", "agents": 90_000}]
    grid = write_grid(tmp_path, cases=cases, set={"rounds": 2, "baselines": {}}, options={})
    out = tmp_path / "out"
    said = fedge("run", grid, "--out", out, code=6)
    assert "1 run done, 1 failed" in said
    index = load_experiment(out).index
    (failed,) = [run for run in index.runs if run.status == "failed"]
    assert failed.case == "many"
    assert failed.error in said
    assert "\n" not in failed.error
    assert failed.error in (out / failed.folder / "log.txt").read_text()
    assert "many seed 0 failed" in fedge("table", out)
    said = fedge("compare", out, "--baseline", "good", code=2)
    assert "many has no result for seed 0 (failed" in said


def test_a_grid_runs_in_real_processes_too(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, engine="run", set={"rounds": 2, "baselines": {}})
    fedge("run", grid, "--out", tmp_path / "out")
    ((_, report),) = reports(tmp_path / "out").items()
    assert [record["status"] for record in report["rounds"]] == ["committed"] * 2


@pytest.mark.parametrize(
    ("engine", "options"),
    [("run", {}), ("simulate", {"mode": "bytes"}), ("simulate", {"mode": "exact"})],
)
def test_an_interrupted_run_goes_on_with_its_rounds(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    grid = write_grid(
        tmp_path,
        engine=engine,
        set={"rounds": 3, "baselines": {}},
        options={"agents": 2} | options,
    )
    (job,) = prepare(make_plan(grid), tmp_path / "out").jobs

    def interrupt(_rounds: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(job, interrupt)
    assert reports(tmp_path / "out") == {}
    (again,) = prepare(make_plan(grid), tmp_path / "out").jobs
    assert execute(again, lambda _: None) == ""
    report = load_report(job.folder)
    assert [record["round"] for record in report.history] == [1, 2, 3]
    assert len(report.document["run"]["resumed"]) == 1
    assert prepare(make_plan(grid), tmp_path / "out").jobs == ()


def test_a_process_that_is_killed_costs_its_run_only(tmp_path: Path) -> None:
    import multiprocessing

    grid = write_grid(tmp_path, set={"rounds": 2, "baselines": {}}, seeds=2)
    prepared = prepare(make_plan(grid), tmp_path / "out")
    ended, killed = {}, 0
    for event in run_jobs(prepared.jobs, 1):
        if isinstance(event, Began) and not killed:
            (child,) = multiprocessing.active_children()
            assert child.pid is not None
            killed = child.pid
            os.kill(killed, signal.SIGKILL)
        if isinstance(event, Ended):
            ended[event.key[1]] = event.error
    assert ended[0].startswith("its process ended: SIGKILL")
    assert ended[1] == ""
    assert multiprocessing.active_children() == []


def test_closing_the_iterator_ends_all_processes(tmp_path: Path) -> None:
    import multiprocessing

    grid = write_grid(tmp_path, set={"rounds": 500, "baselines": {}}, seeds=2)
    prepared = prepare(make_plan(grid), tmp_path / "out")
    events = run_jobs(prepared.jobs, 2)
    assert isinstance(next(events), Began)
    pids = [child.pid for child in multiprocessing.active_children()]
    events.close()
    assert len(pids) == 2
    assert all(pid is not None and gone_within(pid, 5.0) for pid in pids)


def test_a_second_process_does_not_run_the_same_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, "experiment"):
        said = fedge("run", write_grid(tmp_path), "--out", out, code=2)
    assert f"{out} is in use by process {os.getpid()}: wait for its end, or name another" in said


@pytest.mark.parametrize("name", ["runs", "experiment.json"])
def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / "runs/mine").mkdir(parents=True)
    if name == "experiment.json":
        index = {"experiment": "another", "cases": [], "runs": []}
        (out / name).write_text(json.dumps(index))
    said = fedge("run", write_grid(tmp_path), "--out", out, code=2)
    assert "name another folder with --out" in said
    assert (out / "runs/mine").is_dir()


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "experiments").glob("*.yaml")), ids=lambda path: path.stem
)
def test_an_example_runs_one_seed_for_one_round(path: Path, tmp_path: Path) -> None:
    plan = make_plan(path)
    fewer = ("--seeds", "1", "--set", "rounds=1", "--set", "training.epochs=1")
    said = fedge("run", path, *fewer, "--out", tmp_path / "out")
    assert f"{len(plan.cases)} runs done" in said
    table = json.loads(fedge("table", tmp_path / "out", "--json"))
    assert [row["final"]["n"] for row in table["cases"]] == [1] * len(plan.cases)
