"""Baselines: measured on the same rows and with the same metric as the federated model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from edge_agent.training.trainer import train
from fedge.errors import ConfigError, DataError, TrainingError
from fleet import baselines
from fleet.baselines import Baselines, check_baselines, measure_baselines
from fleet.participants import Participants, make_participants
from fleet.report import check_compared, federated_figure, verdicts
from fleet.scenario import BaselineConfig, coordinator_config, load_scenario
from fleet.virtual.simulate import SimulationOptions, make_setting
from models.zoo import load_zoo

PACKAGE = load_zoo("house_price")


def measured(folder: Path, unseen: list[str] | None = None, **wanted: Any) -> Baselines:
    """Prices that rise by another slope at each of three sites, with 10, 20 and 30 rows."""
    rng = np.random.default_rng(0)
    client = np.repeat([0, 1, 2], [10, 20, 30])
    x = rng.normal([3.7, 5.3], [1.5, 2], (60, 2)).astype(np.float32)
    np.savez(folder / "data.npz", features=x, y=x[:, 0] * (client + 1), client=client)
    document = {
        "name": "s",
        "description": "d",
        "licence": "made up",
        "data": {"path": "data.npz", "test_fraction": 0.5},
        "partition": {"kind": "client", "prefix": "site"},
        "unseen": unseen or [],
        "federation": {"model": "house_price", "rounds": 5},
        "baselines": {"metric": "mae", **wanted},
    }
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(document))
    scenario = load_scenario(path)
    config = coordinator_config(scenario, path)
    participants = make_participants(scenario, path, PACKAGE.spec, None)
    return measure_baselines(
        participants, config, PACKAGE, np.zeros(3, np.float32), lambda *_: None
    )


def test_own_models_are_each_measured_on_their_agents_rows(
    tmp_path: Path,
) -> None:
    found = measured(tmp_path, own=True, pooled=True)
    each = found.details["own_on_own"]
    assert isinstance(each, dict)
    assert list(each) == ["site-0", "site-1", "site-2"]
    by_rows = (5 * each["site-0"] + 10 * each["site-1"] + 15 * each["site-2"]) / 30
    assert found.figures["own_on_own"] == pytest.approx(by_rows, rel=1e-6)
    assert found.figures["own_on_own"] < found.figures["pooled_on_own"]  # the slopes differ
    assert set(found.models) == {"own", "pooled"}


def test_on_unseen_agents_the_metrics_of_own_models_are_averaged(tmp_path: Path) -> None:
    found = measured(tmp_path, ["site-0"], own=True, pooled=True)
    each = found.details["own_on_unseen"]
    assert isinstance(each, dict)
    assert list(each) == ["site-1", "site-2"]
    mean = (each["site-1"] + each["site-2"]) / 2
    assert found.figures["own_on_unseen"] == pytest.approx(mean)
    assert set(found.figures) == {
        *("own_on_own", "own_on_unseen"),
        *("pooled_on_own", "pooled_on_unseen"),
    }


def test_an_impossible_baseline_is_refused_before_the_run(tmp_path: Path) -> None:
    check_baselines(BaselineConfig(metric="mae", least_squares=True), PACKAGE.spec, tmp_path)
    with pytest.raises(
        ConfigError, match=r"baselines.metric: 'r2' is no metric of .*; known: loss, mae"
    ):
        check_baselines(BaselineConfig(metric="r2"), PACKAGE.spec, tmp_path)
    deep = load_zoo("handwritten_digit").spec
    with pytest.raises(ConfigError, match=r"least_squares: handwritten_digit is not a linear regr"):
        check_baselines(BaselineConfig(least_squares=True), deep, tmp_path)


def test_a_simulation_refuses_a_metric_at_once(tmp_path: Path) -> None:
    measured(tmp_path, metric="r2")
    with pytest.raises(ConfigError, match=r"s.yaml: baselines.metric: 'r2' is no metric of"):
        make_setting(tmp_path / "s.yaml", SimulationOptions(tmp_path / "out"))


def test_limits_are_checked_on_unseen_agents_where_there_are_any(tmp_path: Path) -> None:
    measured(tmp_path, ["site-0"], own=True, pooled=True, within=0.1, above_own=0.5)
    scenario = load_scenario(tmp_path / "s.yaml")
    report: dict[str, Any] = {
        "baselines": {"own_on_unseen": 3.0, "pooled_on_unseen": 2.0, "own_on_own": 0.0},
        "final": {"loss": 9.0, "metrics": {"mae": 7.0, "unseen_mae": 2.2}},
    }
    assert federated_figure(scenario, report, "own") == 7.0
    assert federated_figure(scenario, report, "unseen") == 2.2
    assert verdicts(scenario, report) == [  # an error falls when it gets better
        (False, "-0.200 against pooled, at least -0.1 wanted"),
        (True, "+0.800 against own, at least +0.5 wanted"),
    ]
    # Likewise that of one of several outputs.
    baselines = msgspec.structs.replace(scenario.baselines, metric="wear_mae")
    several = msgspec.structs.replace(scenario, baselines=baselines)
    report["final"]["metrics"]["unseen_wear_mae"] = 2.2
    assert verdicts(several, report) == verdicts(scenario, report)


def test_a_failed_baseline_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_on_small(program: Any, theta: Any, rows: Any, *rest: Any) -> Any:
        if len(rows["target"]) == 10:
            raise TrainingError("gather index out of bounds")
        return train(program, theta, rows, *rest)

    monkeypatch.setattr(baselines, "train", fail_on_small)
    found = measured(tmp_path, own=True, pooled=True)
    assert found.failed == {"own": "site-1: gather index out of bounds"}
    assert (set(found.figures), set(found.models)) == ({"pooled_on_own"}, {"pooled"})
    why = "lacks baselines: own: site-1: gather index out of bounds"
    with pytest.raises(ConfigError, match=why):
        check_compared({"baselines_failed": found.failed})
    check_compared({})


def test_agents_whose_rows_cannot_be_used_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Participants.dataset

    def unusable(participants: Participants, name: str) -> Any:
        if name == "site-1":
            raise DataError("row 5: nan")
        return dataset(participants, name)

    monkeypatch.setattr(Participants, "dataset", unusable)
    found = measured(tmp_path, own=True)
    each = found.details["own_on_own"]
    assert isinstance(each, dict)
    assert list(each) == ["site-0", "site-2"]
    assert not found.failed


def test_a_scenario_without_training_agents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="unseen: names all 3 agents; leave at least one to train"
    ):
        measured(tmp_path, ["site-0", "site-1", "site-2"])
    path = tmp_path / "s.yaml"
    document = yaml.safe_load(path.read_text())
    document["data"]["test_fraction"] = 1.0
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match="test_fraction 1 leaves no agent rows to train on"):
        load_scenario(path)
