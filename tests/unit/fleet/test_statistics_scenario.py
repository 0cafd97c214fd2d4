"""Scenarios of the task statistics: participants, refusals and contradictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedge.errors import ConfigError
from fleet.participants import Participants, make_participants
from fleet.scenario import fleet_changes, load_scenario, scenario_package

EXAMPLES = Path(__file__).parents[3] / "examples"


def written(folder: Path, name: str = "statistics", **changes: Any) -> Path:
    document = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    document["data"]["path"] = str(EXAMPLES / document["data"]["path"])
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return path


def participants_of(path: Path, agents: int | None = None) -> Participants:
    scenario = load_scenario(path)
    return make_participants(scenario, path, scenario_package(scenario, path).spec, agents)


def test_every_agent_is_asked_and_allows_it_unless_the_scenario_says_otherwise(
    tmp_path: Path,
) -> None:
    participants = participants_of(written(tmp_path, unseen=["site-9"]))
    assert len(participants.asked) == 10
    assert [n for n in participants.rows if not participants.statistics(n).allow] == ["site-3"]
    assert participants.phases("site-1") == ("train", "evaluate", "statistics")
    assert participants.phases("site-9") == ("evaluate", "statistics")
    assert fleet_changes(participants.scenario, len(participants.asked))["start"]["agents"] == 10


def test_agents_that_train_allow_no_statistics(tmp_path: Path) -> None:
    participants = participants_of(written(tmp_path, "house_price", unseen=["site-9"]))
    assert not any(participants.statistics(name).allow for name in participants.rows)
    assert "site-9" not in participants.asked
    assert len(participants.asked) == 9


def test_fewer_agents_may_lack_the_one_that_refuses(tmp_path: Path) -> None:
    participants = participants_of(written(tmp_path), agents=2)
    assert [participants.statistics(name).allow for name in participants.rows] == [True, True]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("statistics", {"refuse": ["site-30"]}, "refuse: no agent 'site-30'"),
        ("statistics", {"baselines": {"pooled": True}}, "trains nothing: leave out baselines"),
        ("statistics", {"detection": {"label": "x"}}, "trains nothing"),
        ("house_price", {"refuse": ["site-3"]}, "refuse applies to the task statistics"),
    ],
)
def test_contradictory_scenario_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        participants_of(written(tmp_path, name, **changes))
