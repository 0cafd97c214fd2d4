"""`fedge experiment table`, `plot` and `compare` as they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fleet.cli.experiment import cli
from tests.unit.fleet.experiments.reports import experiment, report_document, round_document


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_folder_that_is_missing_may_be_one_of_an_experiment_too(tmp_path: Path) -> None:
    done = call("table", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: {tmp_path}/nowhere: no such file or folder: name the folder of an experiment or "
        "of a run, or a report.json\n"
    )


def test_help_shows_no_range_of_a_target_and_a_target_is_finite(tmp_path: Path) -> None:
    assert "None]" not in call("table", "--help").stdout
    done = call("table", tmp_path, "--target", "nan")
    assert done.exit_code == 2
    assert "'nan' is not a finite number" in done.stderr


def refused(folder: Path, file: Path, why: str) -> None:
    """Asserts that every command says in one line that the file is damaged."""
    for words in (("table",), ("plot",), ("compare", "--baseline", "a")):
        done = call(words[0], folder, *words[1:])
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(f"error: {file} is ")
        assert why in done.stderr
        assert done.stderr.count("\n") == 1


def test_an_undamaged_experiment_is_shown(tmp_path: Path) -> None:
    experiment(tmp_path, {"a": {0: [0.5]}, "b": {0: [0.6]}})
    assert call("table", tmp_path).exit_code == 0
    assert call("compare", tmp_path, "--baseline", "a").exit_code == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rounds": 3}, "rounds: expected a list, got 3"),
        ({"rounds": [{}]}, "rounds[0].bytes_up: required key is missing"),
        ({"rounds": [3]}, "rounds[0]: expected a mapping of keys, got 3"),
        (
            {"rounds": [round_document(1, 0.5, metrics={"accuracy": "good"})]},
            "rounds[0].metrics.accuracy: expected a number or null, got 'good'",
        ),
        ({"rounds": [round_document(1, 0.5, bytes_up=10**400)]}, "rounds[0].bytes_up: "),
        ({"rounds": [round_document(1, 0.5, agents={"pi-1": None})]}, "rounds[0].agents.pi-1: "),
        ({"rounds": [round_document(n, 0.5) for n in (2, 1)]}, "rounds[1].round_id: expected more"),
        ({"final": None}, "final: expected a mapping of keys, got nothing (null)"),
        ({"final": {}}, "final.bytes_up: required key is missing"),
        ({"run": {"versions": 3}}, "run.versions: expected a mapping"),
        ({"seed": "x"}, "seed: expected a whole number or null, got 'x'"),
        ({"classes": [1]}, "classes[0]: expected text, got 1"),
    ],
)
def test_a_damaged_report_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    experiment(tmp_path, {"a": {0: [0.5]}, "b": {0: [0.6]}})
    file = tmp_path / "runs/a/0/report.json"
    file.write_text(json.dumps(report_document([0.5]) | change))
    refused(tmp_path, file, why)


def test_a_matrix_that_is_not_square_is_refused(tmp_path: Path) -> None:
    experiment(tmp_path, {"a": {0: [0.5]}, "b": {0: [0.6]}})
    file = tmp_path / "runs/a/0/report.json"
    document = report_document([0.5])
    document["final"]["matrices"] = {"confusion": [[1, 2], [3]]}
    file.write_text(json.dumps(document))
    refused(tmp_path, file, "final: matrices.confusion: expected as many columns as rows")


@pytest.mark.parametrize("name", ["experiment.json", "runs/a/0/report.json"])
@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_a_file_that_is_no_json_is_refused_in_one_line(
    tmp_path: Path, name: str, text: str
) -> None:
    experiment(tmp_path, {"a": {0: [0.5]}, "b": {0: [0.6]}})
    (tmp_path / name).write_text(text, encoding="latin-1")
    refused(tmp_path, tmp_path / name, "again" if name == "experiment.json" else "repeat the run")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"runs": 3}, "runs: expected a list, got 3"),
        ({"runs": [{}]}, "runs[0].case: required key is missing"),
        ({"cases": None}, "cases: expected a list, got nothing (null)"),
        ({"target": {"metric": "accuracy", "value": None}}, "target.value: expected a number"),
        ({"target": {"metric": None, "value": 1}}, "target.metric: expected text"),
    ],
)
def test_a_damaged_index_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    experiment(tmp_path, {"a": {0: [0.5]}, "b": {0: [0.6]}})
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(tmp_path, file, why)
