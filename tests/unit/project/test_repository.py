"""The repository's own files: type markers, hooks, targets of make, extras."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_every_top_level_package_is_in_the_wheel() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").read_text() == ""


def test_pre_commit_fetches_no_repository_and_calls_what_make_installs() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in repositories] == ["local"]
    targets = re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text())
    for hook in repositories[0]["hooks"]:
        program, word = hook["entry"].split()[:2]
        assert hook["language"] == "system"
        assert program == ".venv/bin/ruff" or (program == "make" and word in targets)


def test_unit_tests_and_checks_install_no_tensorflow() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    text = (ROOT / "Makefile").read_text()
    for target in ("unit", "check", "fix"):
        assert f"\n{target}: .venv/.check\n" in text
    installed = re.search(r"(?s)\n\.venv/\.check:.*?'\.\[([\w,]+)\]'", text)
    assert installed
    names = installed[1].split(",")
    assert "export" not in names
    requirements = [line for name in names for line in extras[name]]
    assert not [line for line in requirements if "tensorflow" in line or "export" in line]
