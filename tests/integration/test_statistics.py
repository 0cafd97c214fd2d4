"""Statistics of a fleet, over a real broker and in virtual time: those of all rows in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from broker.local.broker import LocalBroker
from coordinator.cli import cli as coordinator_cli
from fleet.cli.main import cli
from fleet.participants import make_participants
from fleet.scenario import load_scenario, scenario_package
from tests.conftest import need

EXAMPLE = Path(__file__).parents[2] / "examples" / "statistics.yaml"
INCOME, ROOMS, PRICE = "median_income", "rooms_per_household", "target"


def pooled(without: str) -> dict[str, Any]:
    """The raw columns of all rows but those of one site."""
    scenario = load_scenario(EXAMPLE)
    participants = make_participants(
        scenario, EXAMPLE, scenario_package(scenario, EXAMPLE).spec, None
    )
    rows = np.concatenate([index for name, index in participants.rows.items() if name != without])
    x = participants.table.arrays["features"][rows].astype(np.float64)
    y = participants.table.arrays["target"][rows].astype(np.float64) * 1e-5
    return {INCOME: x[:, 0], ROOMS: x[:, 1], PRICE: y}


def check_table(statistics: dict[str, Any], columns: dict[str, Any]) -> None:
    assert statistics["declined"] == {"site-3": "not_allowed"}
    assert statistics["details"]["not_allowed"].startswith("site-3: statistics.allow is false")
    assert (statistics["asked"], statistics["reported"]) == (10, 9)
    asked = yaml.safe_load(EXAMPLE.read_text())["federation"]["task"]["columns"]
    assert set(statistics["columns"]) == set(columns)
    for name, numbers in columns.items():
        found = statistics["columns"][name]
        assert (found["count"], found["missing"]) == (len(numbers), 0)
        assert found["weight"] == len(numbers)
        for key, value in (
            ("sum", numbers.sum()),
            ("mean", numbers.mean()),
            ("variance", numbers.var()),
            ("std", numbers.std()),
            ("min", numbers.min()),
            ("max", numbers.max()),
        ):
            assert found[key] == pytest.approx(value, rel=1e-6), (name, key)
        if edges := asked[name]:
            counts = np.bincount(np.digitize(numbers, edges), minlength=len(edges) + 1)
            assert found["histogram"] == {"edges": edges, "weights": counts.tolist()}
        else:
            assert "histogram" not in found


def table_of(output: str) -> list[str]:
    """The lines of the table and its histograms, wherever they were printed."""
    lines = output.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("column "))
    end = next(n for n, line in enumerate(lines) if line.startswith("5 and above"))
    return lines[start : end + 1]


def play(command: str, out: Path, *options: str) -> tuple[str, dict[str, Any]]:
    done = CliRunner().invoke(cli, [command, str(EXAMPLE), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert report["stopped"] == "answered"
    assert [record["status"] for record in report["rounds"]] == ["answered"]
    assert report["baselines"] == {}
    assert not (out / "model").exists()
    return done.output, report


def test_a_fleet_s_statistics_are_those_of_the_rows_of_all_who_allow_it(tmp_path: Path) -> None:
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        address = f"mqtt://{broker.settings.host}:{broker.settings.port}"
        output, report = play("run", tmp_path / "run", "--broker", address)
        columns = pooled(without="site-3")
        check_table(report["statistics"], columns)
        assert "9 of 10 agents answered" in output
        assert "1 declined (not_allowed): site-3: statistics.allow is false" in output
        table = table_of(output)
        assert table[1].split()[:3] == [INCOME, f"{len(columns[INCOME]):,}", "0"]
        # The coordinator by itself: what it wrote, what it says, and that it asks nobody twice.
        folder = tmp_path / "run" / "processes" / "coordinator"
        written = json.loads((folder / "state" / "statistics.json").read_text())
        assert written == report["statistics"]
        assert not (folder / "state" / "model").exists()
        config = ("--config", str(folder / "coordinator.yaml"))
        status = CliRunner().invoke(coordinator_cli, ["status", *config])
        assert status.exit_code == 0, status.output
        assert table_of(status.output) == table
        (folder / "state" / "statistics.json").unlink()
        again = CliRunner().invoke(coordinator_cli, ["run", *config, "--give-up-after", "20"])
        assert again.exit_code == 0, again.output
        assert table_of(again.output) == table
        assert json.loads((folder / "state" / "statistics.json").read_text()) == written


def test_a_simulation_gives_the_same_table(tmp_path: Path) -> None:
    output, report = play("simulate", tmp_path / "simulated", "--set", "seeds.simulation=4")
    check_table(report["statistics"], pooled(without="site-3"))
    _, run = play("run", tmp_path / "run", "--hosts", "1")
    one, other = (r["statistics"]["columns"] for r in (report, run))
    assert set(one) == set(other)
    for name, column in one.items():
        assert column.pop("histogram", None) == other[name].pop("histogram", None)
        assert column == pytest.approx(other[name], rel=1e-9)
    assert "9 of 10 agents answered" in output


@pytest.mark.parametrize("at_s", [0.02, 0.35, 1.5])  # before, between and amid the answers
def test_a_coordinator_that_dies_before_the_end_asks_again(tmp_path: Path, at_s: float) -> None:
    faults = tmp_path / "faults.yaml"
    crash = {"who": ["coordinator"], "at_s": at_s, "after_actions": 0, "down_s": 1.0}
    faults.write_text(yaml.safe_dump({"until_s": 60, "crashes": [crash]}))
    _, report = play("simulate", tmp_path / "out", "--faults", str(faults))
    check_table(report["statistics"], pooled(without="site-3"))
    assert report["statistics"]["round_id"] == 1


def test_a_fleet_that_does_not_allow_it_gives_nothing_and_says_why(tmp_path: Path) -> None:
    document = yaml.safe_load(EXAMPLE.read_text())
    document["data"]["path"] = str(EXAMPLE.parent / document["data"]["path"])
    document["refuse"] = [f"site-{n}" for n in range(10)]
    path = tmp_path / "none.yaml"
    path.write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(cli, ["run", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 4
    assert "10 declined (not_allowed)" in done.output
    assert not (tmp_path / "out" / "report.json").exists()
