"""benchmarks/papers: scenarios load, the plain script is FedAvg, the page has the figures."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fleet.experiments.results import Report
from fleet.scenario import load_scenario
from tests.unit.fleet.experiments.reports import report_document, round_document

PAPERS = Path(__file__).parents[3] / "benchmarks" / "papers"
RESULTS = sorted((PAPERS / "results").glob("*.json"))
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of the experiments, as their own scripts do."""
    monkeypatch.syspath_prepend(str(PAPERS))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if (PAPERS / f"{name}.py").exists():
            del sys.modules[name]


def central(*accuracies: float) -> Report:
    rounds = [
        round_document(n, None, metrics={"central_accuracy": value})
        for n, value in enumerate(accuracies, 1)
    ]
    return Report(report_document([], rounds))


@pytest.mark.parametrize("path", sorted(PAPERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_scenario_of_a_paper_loads(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert scenario.data.test_fraction == 0  # a client's rows are all learned from, as in the paper


def test_a_row_states_mean_spread_and_verdict(load: Load) -> None:
    row = load("paper_runs").rounds_row
    found = row("tiny", {0: central(0.5, 0.9), 1: central(0.5, 0.7, 0.9)}, 0.8, 2.0)
    assert found["rounds"] == {"0": 1.8, "1": 2.5}  # interpolated
    assert (found["mean"], found["sd"], found["ratio"]) == (2.1, 0.5, 1.06)
    assert found["verdict"] == "within 1.3 x the paper's"
    assert row("tiny", {0: central(0.5, 0.9)}, 0.8, 1.0)["verdict"] == "beyond 1.3 x the paper's"
    unfinished = row("tiny", {0: central(0.5, 0.9), 1: central(0.5, 0.6)}, 0.8, 2.0)
    assert "not reached" in unfinished["verdict"]
    assert "mean" not in unfinished


def test_another_data_file_is_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "mnist_writers.npz"
    np.savez(path, x=np.zeros(1))
    with pytest.raises(SystemExit, match=r"SHA-256 .* expected 2c076a62"):
        load("paper_runs").open_data(path, "mnist_writers.npz")


def test_a_plain_step_follows_the_gradient(load: Load) -> None:
    plain = load("numpy_fedavg")
    rng = np.random.default_rng(0)
    theta = [layer.astype(np.float64) for layer in plain.INITIAL["glorot"](rng)]
    x, y = rng.random((10, 784)), rng.integers(0, 10, 10)

    def loss() -> float:
        scores = plain._forward(theta, x)[-1]
        return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(10), y]).mean())

    stepped = [layer.copy() for layer in theta]
    plain._step(stepped, x, y, 1.0)
    for number, place in ((0, (3, 5)), (2, (7, 11)), (3, (4,)), (4, (9, 2)), (5, (6,))):
        before = theta[number][place]
        theta[number][place] = before + 1e-5
        above = loss()
        theta[number][place] = before - 1e-5
        slope = (above - loss()) / 2e-5
        theta[number][place] = before
        assert before - stepped[number][place] == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_the_plain_script_learns(load: Load) -> None:
    plain = load("numpy_fedavg")
    rng = np.random.default_rng(1)
    y = rng.integers(0, 10, 400)
    x = (0.1 * rng.random((400, 784)) + 0.5 * (np.arange(784) % 10 == y[:, None])).astype(
        np.float32
    )
    clients = np.split(np.arange(400), 20)
    rounds = plain.fedavg(plain.INITIAL["glorot"](rng), (x, y), (x, y), clients, 0.2, rng)
    accuracies = list(islice(rounds, 8))
    assert accuracies[-1] > 0.9
    assert accuracies[-1] > accuracies[0]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_page_has_every_figure_of_a_result(path: Path) -> None:
    page = (PAPERS / "README.md").read_text()
    document = json.loads(path.read_text())
    assert document["sha256"] in page
    assert f"](results/{path.stem}.png)" in page
    assert (path.parent / f"{path.stem}.png").exists()
    for row in document["rows"]:
        assert shown(row) in page


def shown(row: dict[str, Any]) -> str:
    """A figure as the page writes it: mean ± sd, or what was reached."""
    if "label" in row and "mean" not in row:
        best = max(max(curve) for curve in row["curves"].values())
        return f"{best:.4f} after {max(row['run'].values())}"
    found = next((row[key] for key in row if key.startswith("best_within")), row)
    digits = 1 if "label" in row else 4
    spread = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{spread}"
