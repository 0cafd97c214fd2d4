"""Errors of a user's file, in one line with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedge.errors import ConfigError
from models.cli.user_code import find_function, user_code_errors


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))  # what is added to the path goes with it


def find(folder: Path, source: str, name: str = "build") -> str:
    """Returns the error of a function in a file."""
    path = folder / "own.py"
    path.write_text(source)
    with pytest.raises(ConfigError) as caught:
        find_function(f"{path}:{name}")
    return str(caught.value).replace(str(path), "own.py")


@pytest.mark.parametrize(("call", "shown"), [("sys.exit(3)", "3"), ("sys.exit()", "")])
def test_a_file_that_exits_is_reported(tmp_path: Path, call: str, shown: str) -> None:
    said = find(tmp_path, f"import sys\n{call}\n")
    assert said.startswith(f"own.py failed: it called sys.exit({shown}) (line 2 of own.py)")


def test_a_function_that_exits_is_reported() -> None:
    with pytest.raises(ConfigError, match="it called sys"), user_code_errors("own.py:build()"):
        raise SystemExit("no data")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\ndef build(:\n", "SyntaxError: invalid syntax (line 2 of own.py)"),
        ("import json\njson.loads('{')\n", "(line 2 of own.py)"),
        ("import ast\n\nast.literal_eval('(')\n", "was never closed (line 3 of own.py)"),
    ],
)
def test_an_error_names_the_line_of_the_user_s_code(tmp_path: Path, source: str, says: str) -> None:
    said = find(tmp_path, source)
    assert said.endswith(f"{says}; -v shows the traceback")


def test_a_function_with_required_arguments_is_rejected_with_its_line(tmp_path: Path) -> None:
    said = find(tmp_path, "\ndef build(units, rate=0.1):\n    pass\n")
    assert said == (
        "own.py:build must work without arguments: missing a required argument: 'units' "
        "(line 2 of own.py)"
    )


def test_a_keras_object_is_rejected_as_function(tmp_path: Path) -> None:
    source = "class Sequential:\n    __call__ = None\nSequential.__module__ = 'keras.src.models'\n"
    said = find(tmp_path, source + "model = Sequential()\n", "model")
    assert said == (
        "own.py:model is a Sequential, not a function that returns one: def build(): return model"
    )


def test_a_relative_import_error_names_the_alternative(tmp_path: Path) -> None:
    said = find(tmp_path, "from .parts import network\n")
    assert "no known parent package: name the module from the folder above, PACKAGE.MODULE:" in said


def test_an_unknown_function_lists_the_callable_ones(tmp_path: Path) -> None:
    (tmp_path / "shared_parts.py").write_text("def network():\n    pass\n")
    source = (
        "from collections import OrderedDict\n"
        "from os.path import join\n"
        "from shared_parts import network\n"
        "def _hidden(): pass\n"
        "def other(units=8): pass\n"
        "def with_units(units): pass\n"
    )
    assert find(tmp_path, source) == "own.py has no function 'build'; it has: network, other"
    said = find(tmp_path, source, "netwrk")
    assert said.endswith("; did you mean network? it has: network, other")


def test_a_wrapper_may_add_the_arguments(tmp_path: Path) -> None:
    source = """
import functools

def with_units(function):
    @functools.wraps(function)
    def wrapped():
        return function(8)
    return wrapped

@with_units
def build(units):
    return units
"""
    (tmp_path / "own.py").write_text(source)
    assert find_function(f"{tmp_path / 'own.py'}:build")() == 8
