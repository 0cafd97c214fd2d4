"""Folders of a fleet run: it writes its own files and leaves foreign ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edge_agent.config import AgentConfig
from fedge.errors import ConfigError
from fedge.yaml_config import load_config
from fleet.participants import Participants, make_participants
from fleet.runs import folders
from fleet.scenario import fleet_changes, load_scenario, scenario_package
from models.zoo import load_zoo


@pytest.mark.parametrize("name", ["model", "processes", "report.json"])
def test_foreign_files_are_not_removed(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    if name == "report.json":
        own.write_text('{"mine": 1}')
    else:
        own.mkdir()
        (own / "coordinator").mkdir()
    with pytest.raises(ConfigError, match=rf"holds '{name}', which no earlier run made.*--out"):
        folders.clear(tmp_path)
    assert own.exists()


@pytest.mark.parametrize("mark", ["report.json", "processes/coordinator/coordinator.yaml"])
def test_only_files_of_an_earlier_run_are_removed(tmp_path: Path, mark: str) -> None:
    for name in (mark, "model/initial.npy", "mine/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{\n "scenario": "s"}')
    folders.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "file").exists()


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    folders.clear(tmp_path / "runs" / "new")
    assert (tmp_path / "runs" / "new").is_dir()


@pytest.mark.parametrize("place", ["file/x", "file", "/proc/y", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_error_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written: [A-Z].*; name another .* --out$"):
        folders.clear(tmp_path / place)


def participants_of(folder: Path, **federation: Any) -> Participants:
    """Four rows for two agents, of a scenario that says more than the defaults."""
    data: dict[str, Any] = {
        "features": np.zeros((4, 2), np.float32),
        "y": np.zeros(4),
        "client": [0, 0, 1, 1],
    }
    np.savez(folder / "data.npz", **data)
    document = {
        "name": "s",
        "description": "d",
        "licence": "made up",
        "data": {"path": "data.npz", "max_rows": 2_000_000},
        "partition": {"kind": "client"},
        "federation": {"model": "house_price", **federation},
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(document))
    scenario = load_scenario(folder / "s.yaml")
    return make_participants(scenario, folder / "s.yaml", load_zoo("house_price").spec, None)


def test_an_agent_may_have_as_many_rows_as_the_scenario_allows(tmp_path: Path) -> None:
    participants = participants_of(tmp_path)
    folders.write_agent(tmp_path / "a", "agent-0", participants, "s", {})
    config = load_config(tmp_path / "a" / "agent.yaml", AgentConfig)
    assert config.data.max_rows == 2_000_000


def test_a_scenario_may_name_files_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    package = load_zoo("house_price")
    package.save(tmp_path / "home" / "mine")
    participants = participants_of(tmp_path, model="~/mine", evaluation={"data": "~/held.npz"})
    path = tmp_path / "s.yaml"
    assert scenario_package(participants.scenario, path).digest == package.digest
    config = folders.write_coordinator(tmp_path / "out", participants, package, path, {})
    assert config.evaluation.data == tmp_path / "home" / "held.npz"


def test_a_smaller_fleet_asks_for_no_more_agents_than_it_has(tmp_path: Path) -> None:
    given = {"round": {"minimum": 5, "deadline_s": 9}, "cohort": {"at_least": 2}, "rounds": 7}
    scenario = participants_of(tmp_path, **given).scenario
    start = {"agents": 2, "timeout_s": 60.0}
    smaller = {"start": start, "round": {"minimum": 2, "deadline_s": 9}}
    assert fleet_changes(scenario, 2) == smaller
