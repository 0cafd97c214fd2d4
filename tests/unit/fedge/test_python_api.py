"""Names of the Python API in `fedge`: loaded when used, typed, listed, and cheap to have."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedge
import fleet.api

ROOT = Path(__file__).parents[3]
NAMES = set(fleet.api.__all__)


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_every_name_is_the_one_of_fleet_api() -> None:
    for name in NAMES:
        assert getattr(fedge, name) is getattr(fleet.api, name)


def test_the_stub_has_the_same_names() -> None:
    tree = ast.parse((ROOT / "fedge/__init__.pyi").read_text())
    imported = {
        (node.module, alias.name, alias.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {("fleet.api", name, name) for name in NAMES} < imported
    assert len(imported) == len(NAMES) + 1  # check_shadowing


def test_dir_lists_what_was_never_used() -> None:
    shown = python("import fedge; print(*dir(fedge))").split()
    assert {*NAMES, "__version__"} <= set(shown)


@pytest.mark.parametrize(
    ("name", "hint"), [("simulat", ": did you mean simulate?"), ("torch", ""), ("__wrapped__", "")]
)
def test_an_unknown_name_is_an_attribute_error(name: str, hint: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(fedge, name)
    assert str(caught.value) == f"module 'fedge' has no attribute {name!r}{hint}"


def test_an_import_of_fedge_loads_nothing_of_the_api() -> None:
    code = (
        "import sys, fedge; from fedge import errors\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*loaded & {'numpy', 'fleet', 'models', 'learning', 'msgspec', 'difflib'})"
    )
    assert python(code).split() == []


def test_the_api_works_where_tensorflow_matplotlib_and_rich_are_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'matplotlib', 'rich', 'iotcore'):\n"
        "    sys.modules[name] = None\n"
        "import fedge\n"
        "x = [[1.0, 2.0], [3.0, 4.0]]\n"
        "result = fedge.simulate('house_price', [(x, [1, 2])], rounds=1, progress=False)\n"
        "print(len(result.history))\n"
    )
    assert python(code) == "1\n"
