"""A fleet whose devices' data is odd: said by device, coordinator, status and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from click.testing import CliRunner

from coordinator.cli import cli as coordinator_cli
from fleet.cli.main import cli

WATTS = (
    "site-31: its targets (target) spread about 1,024 x 100,000 USD, the others' 1: are they in "
    "another unit?"
)
#: The site in watts says so of itself, too: the model's unit names a factor.
OWN_WORD = "site-31: target: "
SORTED = "site-7: target: "


def scenario(folder: Path) -> Path:
    """Four sites: the prices of site 31 are a thousand times as large, those of site 7 sorted."""
    rng = np.random.default_rng(0)
    lines = ["site,median_income,rooms_per_household,price"]
    for site in (33, 7, 36, 31):
        prices = rng.normal(2.0, 0.8, 60)
        prices = np.sort(prices) if site == 7 else prices
        for price in prices * (1000 if site == 31 else 1):
            lines.append(f"{site},{rng.normal(4, 1):.3f},{rng.normal(5, 1):.3f},{price:.4f}")
    (folder / "houses.csv").write_text("\n".join([*lines, ""]))
    document: dict[str, Any] = {
        "name": "odd",
        "description": "four sites, two of them odd",
        "licence": "made up",
        "data": {"path": "houses.csv", "target": {"column": "price"}},
        "partition": {"kind": "client", "client": "site", "prefix": "site"},
        "federation": {"model": "house_price", "rounds": 2, "training": {"learning_rate": 1e-4}},
    }
    (folder / "odd.yaml").write_text(yaml.safe_dump(document))
    return folder / "odd.yaml"


def check(output: str, report: dict[str, Any]) -> None:
    for text in (SORTED, WATTS, OWN_WORD):
        assert output.count(f"data: {text}") == 1, output
        assert sum(line.startswith(text) for line in report["data"]) == 1
    assert len(report["data"]) == 3


def test_odd_devices_are_named_by_log_status_and_report(tmp_path: Path) -> None:
    out, options = tmp_path / "run", ("--broker", "embedded", "--out")
    done = CliRunner().invoke(cli, ["run", str(scenario(tmp_path)), *options, str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    check(done.output.replace("\n", " "), report)
    assert set(report["rounds"][-1]["agents"]) == {"site-33", "site-7", "site-36", "site-31"}
    log = (out / "processes" / "site-7" / "log").read_text()
    assert "data.npz: target: " in log
    assert "are the rows sorted by it? Then set data.split: random" in log
    config = out / "processes" / "coordinator" / "coordinator.yaml"
    status = CliRunner().invoke(coordinator_cli, ["status", "--config", str(config)])
    assert status.exit_code == 0, status.output
    assert f"data: {WATTS}" in status.output
    assert " · mae " in status.output
    assert "x 100,000 USD · " in status.output


def test_a_simulation_finds_the_same(tmp_path: Path) -> None:
    options = ("--no-trace", "--out", str(tmp_path / "simulated"))
    done = CliRunner().invoke(cli, ["simulate", str(scenario(tmp_path)), *options])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "simulated" / "report.json").read_text())
    check(done.output.replace("\n", " "), report)
