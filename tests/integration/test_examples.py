"""Every example is played for two rounds, in virtual time, by the first few of its agents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from fleet.cli.main import cli
from fleet.scenario import load_scenario, scenario_package

EXAMPLES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    if not load_scenario(path).is_statistics  # see test_statistics.py
]
ROUNDS = 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_learns(path: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    document["data"]["path"] = str(path.parent / document["data"]["path"])
    document["baselines"]["epochs"] = 1
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump(document))
    scenario = load_scenario(short)
    package = scenario_package(scenario, short)
    agents = len(scenario.unseen) + 2
    options = ("--agents", str(agents), "--rounds", str(ROUNDS), "--no-trace")
    result = CliRunner().invoke(cli, ["simulate", str(short), "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [record["status"] for record in report["rounds"]] == ["committed"] * ROUNDS
    learned = np.load(tmp_path / "model" / "initial.npy")
    assert learned.shape == package.initial.shape
    assert not np.array_equal(learned, package.initial)
    place = "unseen" if scenario.unseen else "own"
    wanted = {f"{kind}_on_{place}" for kind in ("own", "pooled") if document["baselines"].get(kind)}
    assert wanted <= set(report["baselines"])
    assert all(map(np.isfinite, report["baselines"].values()))
    assert f"licence: {scenario.licence[:60]}" in result.output


def test_anomalies_are_looked_for_with_every_kind_of_model(tmp_path: Path) -> None:
    path = str(EXAMPLES[0])
    options = ("--agents", "8", "--rounds", "2", "--no-trace", "--json")
    result = CliRunner().invoke(cli, ["simulate", path, "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "report.json").read_text())["detection"]
    assert set(found) == {"own", "pooled", "federated"}
    for figures in found.values():
        assert set(figures) == {"auc", "found", "false_alarms"}
        assert figures["auc"] > 0.7  # wear shows even to a model that has hardly learned
    assert "finding worn on agents that took no part" in result.output
