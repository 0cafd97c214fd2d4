"""What a fleet run writes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet import folders
from models.errors import ConfigError


@pytest.mark.parametrize("name", ["model", "processes", "report.json"])
def test_what_no_run_made_is_not_removed(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    if name == "report.json":
        own.write_text('{"mine": 1}')
    else:
        own.mkdir()
        (own / "coordinator").mkdir()
    with pytest.raises(ConfigError, match=rf"holds '{name}', which is of no earlier run.*--out"):
        folders.clear(tmp_path)
    assert own.exists()


@pytest.mark.parametrize("mark", ["report.json", "processes/coordinator/coordinator.yaml"])
def test_an_earlier_run_s_files_are_removed_and_others_are_not(tmp_path: Path, mark: str) -> None:
    for name in (mark, "model/initial.npy", "mine/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{\n "scenario": "s"}')
    folders.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "file").exists()


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    folders.clear(tmp_path / "runs" / "new")
    assert (tmp_path / "runs" / "new").is_dir()
