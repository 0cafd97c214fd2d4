"""Files beside a script or notebook that have the name of one of our packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedge.shadowing import PACKAGES

ROOT = Path(__file__).parents[3]
SCRIPT = "import fedge\nimport models.zoo\nprint(len(models.zoo.zoo_names()) > 0)\n"


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def shadow(folder: Path, name: str) -> Path:
    """Makes a file or a package of this name."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 1\n")
    return path.parent if path.name == "__init__.py" else path


@pytest.mark.parametrize("name", ["models.py", "models/__init__.py", "fleet/__init__.py"])
def test_a_script_is_told_what_hides_what(tmp_path: Path, name: str) -> None:
    hiding = shadow(tmp_path, name)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python("script.py", folder=tmp_path)
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    package = name.partition("/")[0].removesuffix(".py")
    kind = "file" if hiding.is_file() else "folder"
    assert last.startswith(f"ImportError: the {kind} {hiding} hides a package of fedge")
    assert f"{ROOT / package}, because Python looks in {tmp_path} first: rename the {kind}" in last


def test_a_notebook_that_imported_its_own_package_before_is_told_too(tmp_path: Path) -> None:
    hiding = shadow(tmp_path, "broker.py")
    done = python("-c", "import broker, sys; sys.path.pop(0); import fedge", folder=tmp_path)
    assert f"ImportError: the file {hiding} hides" in done.stderr


@pytest.mark.parametrize("name", ["models.py", "broker/__init__.py"])
def test_python_m_fedge_says_it_in_one_line(tmp_path: Path, name: str) -> None:
    hiding = shadow(tmp_path, name)
    done = python("-m", "fedge", "--version", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: the {'file' if hiding.is_file() else 'folder'} {hiding}")
    assert python("-P", "-m", "fedge", "--version", folder=tmp_path).returncode == 0


def test_folders_of_data_with_our_names_do_no_harm(tmp_path: Path) -> None:
    for name in PACKAGES:
        shadow(tmp_path, f"{name}/rows.csv")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python("script.py", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert python("-m", "fedge", "--version", folder=tmp_path).returncode == 0
