"""Record of a run in its report: the whole configuration, versions, machine and files."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.participants import make_participants
from fleet.runs.record import checkout_commit, plain, record_notes, run_record
from fleet.scenario import load_scenario, scenario_package

ROOT = Path(__file__).parents[4]
SCENARIO = ROOT / "examples/house_price.yaml"
REPORT = (ROOT / "docs/report.md").read_text()
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))


def record_of(
    path: Path, changes: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    scenario = load_scenario(path, changes)
    package = scenario_package(scenario, path)
    participants = make_participants(scenario, path, package.spec, scenario.agents)
    given = options or {}
    return run_record(
        participants, path, package, kind="event_exact", options=given, started=STARTED
    )


def test_the_configuration_has_changes_defaults_and_seeds() -> None:
    changes = {"federation.algorithm": "fedprox", "seed": 4, "agents": 5}
    record = record_of(SCENARIO, changes)
    found = record["configuration"]
    assert record["seed"] == 4
    assert found["agents"] == 5
    assert found["seeds"] == dict.fromkeys(found["seeds"], 4)
    assert found["partition"] == {"kind": "iid", "prefix": "site", "clients": 10}
    federation = found["federation"]
    assert federation["algorithm"]["name"] == "fedprox"
    assert federation["algorithm"]["mu"] > 0
    assert federation["training"]["learning_rate"] > 0
    assert federation["codec"] == {"name": "float32"}
    assert federation["aggregator"] == {"name": "mean"}
    assert federation["start"]["agents"] == 5
    assert not {"broker", "state_dir", "signing_key"} & set(federation)


def test_without_a_seed_the_weights_are_said_to_be_the_package_s() -> None:
    record = record_of(SCENARIO, {})
    assert record["seed"] is None
    seeds = record["configuration"]["seeds"]
    assert seeds == {
        "partition": 0, "cohort": 0, "weights": "package", "training": 0, "simulation": 0
    }  # fmt: skip
    weights = record["run"]["initial_weights"]
    assert weights == {"seed": None, "package": record["run"]["package"], "kept": {}}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_the_configuration_is_a_scenario_that_runs_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ROOT / "examples/data")
    first = record_of(ROOT / "examples" / name, {"seed": 2})["configuration"]
    (tmp_path / name).write_text(yaml.safe_dump(first))
    assert record_of(tmp_path / name, {})["configuration"] == first


def test_a_record_is_json_and_says_when_and_where() -> None:
    options = {"out": Path("runs/x"), "check": True, "day": datetime(2026, 1, 1, tzinfo=UTC)}
    record = record_of(SCENARIO, {}, options)
    run = json.loads(json.dumps(record))["run"]
    assert run["started"] == "2026-01-02T02:04:05+00:00"
    assert run["options"]["out"] == "runs/x"
    assert set(run["versions"]) == {"fedge", "python", "numpy"}
    assert run["machine"]["cores"] >= 1
    assert run["machine"]["memory_bytes"] > 1 << 20


def test_files_that_the_result_depends_on_are_named_with_their_digest(tmp_path: Path) -> None:
    faults = tmp_path / "faults.yaml"
    faults.write_text("delay: {kind: constant, seconds: 1}")
    files = record_of(SCENARIO, {}, {"faults": faults, "out": tmp_path})["run"]["files"]
    assert set(files) == {"scenario", "data", "faults"}
    data = ROOT / "examples/data/housing_california.npz"
    assert files["data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert files["data"]["bytes"] == data.stat().st_size
    assert files["faults"]["path"] == str(faults)


def test_every_key_of_a_run_is_documented() -> None:
    run = record_of(SCENARIO, {})["run"]
    section = REPORT.partition("\n## run\n")[2].partition("\n## ")[0]
    rows = {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}
    assert set(rows) == set(run)
    for key in ("versions", "machine", "initial_weights"):
        assert all(f"`{name}`" in rows[key] for name in run[key]), key


def test_weights_that_keep_their_values_are_noted() -> None:
    record = record_of(SCENARIO, {"seed": 1})
    assert record_notes(record) == []
    record["run"]["initial_weights"]["kept"] = {"a/kernel": "no", "b/kernel": "no"}
    (note,) = record_notes(record)
    assert note.endswith("whatever the seed (a/kernel, b/kernel): no")
    assert "2 tensors" in note


def test_a_checkout_has_a_commit_and_an_installed_package_none(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *name, *arguments],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    package = tmp_path / "fedge"
    package.mkdir()
    (package / "a").write_text("1")
    assert checkout_commit(package) is None
    git("init", "-q")
    assert checkout_commit(package) is None  # no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert checkout_commit(package) == commit
    (package / "a").write_text("2")
    assert checkout_commit(package) == f"{commit}-dirty"


def test_plain_values_are_of_json_s_types() -> None:
    assert plain({1: (Path("a"), {"x": frozenset({2})}, None, 0.5, True)}) == {
        "1": ["a", {"x": [2]}, None, 0.5, True]
    }
