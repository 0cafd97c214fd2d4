"""`fedge experiment table`, `plot` and `compare` as they are called."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from fleet.cli.experiment import cli


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
