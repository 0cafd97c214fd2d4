"""Fleets that name algorithms, codecs and the like from files, or from an installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from fleet.cli.main import cli
from fleet.virtual.simulate import SimulationOptions, make_setting
from fleet.virtual.simulation import Simulation
from tests.plugins import extending_examples, forgotten_plugins

ROOT = Path(__file__).parents[2]
ROUNDS = 2

#: Devices upload the setting; the coordinator's half adds its mean to every parameter.
MARK = """\
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from learning.algorithms.algorithm import ServerState, Upload
from learning.algorithms.fedavg import FedAvg, PlainRun
from learning.algorithms.registry import ALGORITHMS
from learning.registry import Settings


class MarkSettings(Settings, frozen=True, tag="test_mark"):
    value: float = 1.0


@dataclass(eq=False)
class MarkRun(PlainRun):
    value: float

    def finish(self, theta, summary):
        return super().finish(theta, summary) | {"mark": np.array([self.value], np.float32)}


class Mark(FedAvg):
    settings_type = MarkSettings
    uploads: ClassVar = {"delta": Upload(), "mark": Upload(length=1, lossless=True)}

    def __init__(self, settings, training):
        self.learning_rate, self._value = 1.0, settings.value

    def local(self, context):
        return MarkRun(context.theta, self._value)

    def apply(self, theta, state, aggregate):
        return np.full_like(theta, aggregate.vectors["mark"][0]), state
"""


def scenario(folder: Path, **federation: Any) -> Path:
    """House prices on three agents; θ is 0 at first."""
    example = ROOT / "examples" / "house_price.yaml"
    document = yaml.safe_load(example.read_text())
    document["data"]["path"] = str(example.parent / document["data"]["path"])
    document["baselines"] = {}
    document["federation"] |= {"algorithm": {"name": "test_mark", "value": 7.0}} | federation
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def fleet(
    folder: Path, path: Path, *options: str, site: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `fedge fleet run`, with packages that are installed in `site`."""
    command = [sys.executable, "-P", "-m", "fedge", "fleet", "run", str(path), "--agents", "3"]
    command += ["--rounds", str(ROUNDS), "--out", str(folder / "out"), *options]
    paths = filter(None, [str(site or ""), os.environ.get("PYTHONPATH")])
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def assert_marked(folder: Path, ran: subprocess.CompletedProcess[str]) -> None:
    """Both halves ran, in every process."""
    assert ran.returncode in (0, 6), ran.stdout + ran.stderr  # 6: not as good as promised
    report = json.loads((folder / "out" / "report.json").read_text())
    assert [record["reported"] for record in report["rounds"]] == [3] * ROUNDS
    theta = np.load(folder / "out" / "model" / "initial.npy")
    best = report["final"]["version"]
    assert 1 <= best < ROUNDS, "the mark does no model good: the first is the best"
    assert theta.tolist() == [7.0 * best] * theta.size


@pytest.mark.parametrize("hosts", [0, 1])
def test_a_fleet_runs_the_algorithm_of_a_file_beside_its_scenario(
    hosts: int, tmp_path: Path
) -> None:
    (tmp_path / "mark.py").write_text(MARK.replace("class Mark(", "@ALGORITHMS.add\nclass Mark("))
    path = scenario(tmp_path, plugins=["mark.py"])
    assert_marked(tmp_path, fleet(tmp_path, path, "--hosts", str(hosts)))
    written = tmp_path / "out" / "processes" / "coordinator" / "coordinator.yaml"
    assert yaml.safe_load(written.read_text())["plugins"] == [str(tmp_path / "mark.py")]


def test_a_fleet_runs_the_algorithm_of_an_installed_package(tmp_path: Path) -> None:
    package, info = (tmp_path / "site" / name for name in ("fedge_test_mark", "mark-1.dist-info"))
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(MARK)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mark\nVersion: 1\n")
    points = "[fedge.algorithms]\ntest_mark = fedge_test_mark:Mark\n"
    (info / "entry_points.txt").write_text(points)
    ran = fleet(tmp_path, scenario(tmp_path), site=tmp_path / "site")
    assert_marked(tmp_path, ran)


def test_a_fleet_refuses_a_file_that_cannot_be_loaded_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mark.py").write_text("import learning\n\nlearning.no_such_thing\n")
    path = scenario(tmp_path, plugins=["mark.py"])
    ran = fleet(tmp_path, path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert (
        f"{path}: federation.plugins[0]: {tmp_path}/mark.py, line 3: AttributeError: module "
        "'learning' has no attribute 'no_such_thing'"
    ) in ran.stderr


# --- the examples of docs/extending.md, in virtual time -------------------------------------------


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[list[str]]:
    with forgotten_plugins():
        yield [path.name for path in extending_examples(tmp_path).values()]


def simulated(path: Path) -> Simulation:
    _, _, setting = make_setting(
        path, SimulationOptions(path.parent, {"agents": 4, "federation.rounds": 3})
    )
    simulation = Simulation(setting)
    simulation.run()
    return simulation


def test_the_examples_of_the_manual_train_a_federation(tmp_path: Path, examples: list[str]) -> None:
    path = scenario(
        tmp_path,
        plugins=examples,
        algorithm={"name": "local_momentum", "beta": 0.2},
        codec="float24",
        aggregator="middle_half",
        round={"deadline_s": 60, "minimum": 4},
    )
    simulation = simulated(path)
    records = simulation.coordinator.store.rounds()
    assert [(r.status, r.reported, r.refused) for r in records] == [("committed", 4, 0)] * 3
    losses = [record.loss or 0.0 for record in records]
    assert losses == sorted(losses, reverse=True)
    for agent in simulation.agents.values():
        assert list(agent.agent.rounds.outbox.state.vectors) == ["last"]


def test_the_phase_of_the_manual_is_asked_as_a_task(tmp_path: Path, examples: list[str]) -> None:
    path = scenario(tmp_path, plugins=examples, algorithm="fedavg", task="spread")
    simulation = simulated(path)
    (record,) = simulation.coordinator.store.rounds()
    assert (record.status, record.reported, record.version) == ("answered", 4, 0)
    low, mean, high = record.values["loss"]
    assert 0 < low < mean < high


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_a_fleet_reports_the_answer_to_a_phase_of_the_manual(
    tmp_path: Path, examples: list[str], command: str
) -> None:
    path = scenario(tmp_path, plugins=examples, algorithm="fedavg", task="spread")
    options = ["--agents", "4", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [command, str(path), *options])
    assert done.exit_code == 0, done.output
    assert "4 agents are asked for spread; nothing is trained" in done.output
    assert "4 of 4 agents answered" in done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stopped"] == "answered"
    low, mean, high = report["answer"]["values"]["loss"]
    assert f"loss: {low:.6g}, {mean:.6g}, {high:.6g}" in done.output
    assert not (tmp_path / "out" / "model").exists()
