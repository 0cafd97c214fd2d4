"""The versions that `make demo` and `make test` install on Python 3.11."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"python_version": "3.11", "platform_machine": "x86_64", "sys_platform": "linux"}


def named() -> list[Requirement]:
    """What the project asks for by name, of any of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    lines += [line for lines in project["optional-dependencies"].values() for line in lines]
    found = [Requirement(line) for line in lines if not line.startswith("fedge[")]
    return [one for one in found if one.marker is None or one.marker.evaluate(dict(ENVIRONMENT))]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for pin in pins:
        assert str(pin.marker) == 'python_version == "3.11"'
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def test_each_named_library_has_one_allowed_version() -> None:
    versions = pinned()
    for requirement in named():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"make constraints: {requirement.name} is not in the list"
        assert requirement.specifier.contains(version)


def test_indirect_dependencies_have_one_version() -> None:
    assert {"certifi", "cffi", "flatbuffers", "keras"} <= set(pinned())
