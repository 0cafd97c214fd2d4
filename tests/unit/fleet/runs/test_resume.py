"""Records of runs that were interrupted: what they are held against when they go on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fedge.errors import ConfigError
from fleet.runs.resume import RUN_FILE, resumed_changes, resumed_record, save_record

RECORD: dict[str, Any] = {
    "seed": 1,
    "configuration": {"federation": {"rounds": 5, "codec": {"name": "int8"}}, "show": "rounds"},
    "run": {
        "options": {"changes": {"seed": 1}, "signed": False},
        "started": "2026-01-01T00:00:00+00:00",
        "resumed": [],
        "package": "a" * 64,
        "files": {"scenario": {"sha256": "1" * 64}, "data": {"sha256": "2" * 64}},
    },
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    """The record as a later command has it, with one value changed."""
    record = copy.deepcopy(RECORD)
    record["run"]["started"] = "2026-01-02T00:00:00+00:00"
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("configuration", "federation", "rounds"), 9),
        (("configuration", "show"), "agents"),
        (("run", "files", "scenario", "sha256"), "3" * 64),  # a comment in the file
        (("run", "options", "changes"), {}),
    ],
)
def test_a_run_may_go_on_with_more_rounds_or_other_words(
    tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    save_record(tmp_path, RECORD)
    record = resumed_record(tmp_path, changed(*path, value=value))
    assert record["run"]["started"] == RECORD["run"]["started"]
    assert record["run"]["resumed"] == ["2026-01-02T00:00:00+00:00"]
    save_record(tmp_path, record)
    again = resumed_record(tmp_path, changed(*path, value=value))
    assert len(again["run"]["resumed"]) == 2


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            ("configuration", "federation", "codec", "name"),
            "float32",
            "federation.codec int8, now it is float32",
        ),
        (
            ("configuration", "federation", "stop"),
            {"target": 0.5},
            "federation.stop.target null, now it is 0.5",
        ),
        (("run", "package"), "b" * 64, "the model aaaaaaaaaaaa, now it is bbbbbbbbbbbb"),
        (
            ("run", "files", "data", "sha256"),
            "4" * 64,
            "the file of data, SHA-256 222222222222, now it is 444444444444",
        ),
        (
            ("run", "files", "faults"),
            {"sha256": "5" * 64},
            "the file of faults, SHA-256 none, now it is 555555555555",
        ),
        (("run", "options", "signed"), True, "--signed false, now it is true"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(
    tmp_path: Path, path: tuple[str, ...], value: Any, words: str
) -> None:
    save_record(tmp_path, RECORD)
    with pytest.raises(ConfigError, match=rf"^--resume: the run in .* was begun with {words}; run"):
        resumed_record(tmp_path, changed(*path, value=value))


def test_another_choice_is_named_as_a_whole(tmp_path: Path) -> None:
    begun = changed("configuration", "federation", value={"codec": {"name": "int8", "size": 9}})
    now = changed("configuration", "federation", value={"codec": {"name": "float32"}})
    save_record(tmp_path, begun)
    with pytest.raises(
        ConfigError, match=r"was begun with federation.codec int8, now it is float32; run it as"
    ):
        resumed_record(tmp_path, now)


def test_changes_of_the_first_command_are_kept_and_later_ones_win(tmp_path: Path) -> None:
    save_record(tmp_path, RECORD)
    assert resumed_changes(tmp_path, {"federation.rounds": 9}) == {
        "seed": 1,
        "federation.rounds": 9,
    }
    assert resumed_changes(tmp_path, {"seed": 2}) == {"seed": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"run": {"options": 3}})])
def test_a_damaged_record_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"^--resume: .*run.json cannot be read: .*; begin the"):
        resumed_changes(tmp_path, {})


def test_without_a_run_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--resume: .* holds no run to go on with; name its"):
        resumed_changes(tmp_path, {})
