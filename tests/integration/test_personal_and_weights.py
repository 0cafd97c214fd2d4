"""Whole federations of models with a personal layer, and of rows that weigh unlike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from edge_agent.storage.update_spool import Spool
from fleet.cli.main import cli
from learning.vector.parameters import F64, Layout
from models.package.package import ModelPackage, load_package
from models.zoo import load_zoo

PACKAGE = load_zoo("house_price")
SLOPES = np.array([0.7, -0.4])
OFFSETS = np.array([-2.0, 0.5, 3.0])
ROWS = 60


def sites(folder: Path, weight: F64 | None = None) -> tuple[F64, F64]:
    """`sites.csv`: three sites, an offset for each. Returns features as the model sees them, y."""
    rng = np.random.default_rng(2)
    tensor = PACKAGE.spec.inputs[0]
    x = rng.normal(size=(3 * ROWS, 2))
    site = np.repeat(np.arange(3), ROWS)
    y = x @ SLOPES + OFFSETS[site] + (0.5 * rng.normal(size=len(x)) if weight is not None else 0)
    raw = x * tensor.std + tensor.mean
    weights = np.ones(len(x)) if weight is None else weight
    table = np.c_[site, raw, y, weights]
    header = ",".join(["site", *tensor.features, "price", "trust"])
    np.savetxt(folder / "sites.csv", table, delimiter=",", header=header, comments="")
    return x, y


def scenario(folder: Path, model: str, **federation: Any) -> Path:
    document = {
        "name": "sites",
        "description": "three sites",
        "licence": "made up",
        "data": {
            "path": "sites.csv",
            "target": {"column": "price"},
            "weight": {"column": "trust"},
            "test_fraction": 0.2,
        },
        "partition": {"kind": "client", "client": "site", "prefix": "site"},
        "federation": {"model": model, "round": {"deadline_s": 30, "minimum": 3}, **federation},
    }
    (folder / "sites.yaml").write_text(yaml.safe_dump(document))
    return folder / "sites.yaml"


def fleet(command: str, path: Path) -> dict[str, Any]:
    out = path.parent / "out"
    done = CliRunner().invoke(cli, [command, str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def personal_layers(state_dir: Path) -> float:
    """The one number that a site keeps for itself."""
    memory = Spool(state_dir, 1 << 20).load()
    state = memory.settled if memory.pending is None else memory.pending.state
    assert state is not None
    assert state.personal is not None
    return float(state.personal[0])


def test_every_agent_learns_its_own_offset_and_shares_the_slopes(tmp_path: Path) -> None:
    slopes, offset = PACKAGE.spec.layout.parameters
    spec = msgspec.structs.replace(
        PACKAGE.spec, layout=Layout((slopes,)), personal=Layout((offset,))
    )
    zeros = np.zeros(3, np.float32)
    ModelPackage(spec, PACKAGE.program, zeros[:2], zeros[2:]).save(tmp_path / "own")
    sites(tmp_path)
    training = {"epochs": 5, "batch_size": 0, "learning_rate": 0.2}
    path = scenario(tmp_path, "./own", rounds=20, training=training)
    report = fleet("run", path)  # with real processes and a broker
    assert report["parameters"] == 2
    assert report["final"]["loss"] < 1e-4
    theta = load_package(tmp_path / "out" / "model").initial
    assert theta == pytest.approx(SLOPES, abs=0.01)
    kept = {
        folder.parent.name: personal_layers(folder)
        for folder in (tmp_path / "out" / "processes").glob("site-*/state")
    }
    expected = {f"site-{number}": offset for number, offset in enumerate(OFFSETS)}
    assert kept == pytest.approx(expected, abs=0.02)


def test_the_weights_of_rows_reach_the_update(tmp_path: Path) -> None:
    """One full-batch step: the mean of the gradients of each site's weighted squares."""
    weight = np.random.default_rng(3).integers(0, 4, 3 * ROWS).astype(float)
    x, y = sites(tmp_path, weight)
    training = {"epochs": 1, "batch_size": 0, "learning_rate": 0.1}
    path = scenario(tmp_path, "house_price", rounds=1, training=training, codec={"name": "float32"})
    report = fleet("simulate", path)
    theta = load_package(tmp_path / "out" / "model").initial
    start = PACKAGE.initial.astype(np.float64)
    steps = []
    for site in range(3):
        learned = slice(site * ROWS, site * ROWS + ROWS * 4 // 5)
        design = np.c_[x[learned], np.ones(ROWS * 4 // 5)]
        w = weight[learned]
        error = design @ start - y[learned]
        steps.append(2 * design.T @ (w * error) / w.sum())
    assert theta == pytest.approx(start - 0.1 * np.mean(steps, axis=0), abs=1e-4)
    held_out = [site * ROWS + row for site in range(3) for row in range(ROWS * 4 // 5, ROWS)]
    error = np.c_[x, np.ones(len(x))][held_out] @ theta - y[held_out]
    loss = (weight[held_out] * error**2).sum() / weight[held_out].sum()
    assert report["final"]["loss"] == pytest.approx(loss, rel=1e-4)
