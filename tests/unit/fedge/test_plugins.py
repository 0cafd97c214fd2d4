"""Plug-ins: files named in a configuration, loaded once, refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.plugins import load_plugin, load_plugins
from learning.codecs.registry import CODECS
from tests.plugins import forgotten_plugins

COUNTING = "import sys\nsys.fedge_test_loads = getattr(sys, 'fedge_test_loads', 0) + 1\n"


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    with forgotten_plugins():
        yield
    vars(sys).pop("fedge_test_loads", None)


def written(path: Path, source: str = COUNTING) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    return path


def loads() -> int:
    count: int = getattr(sys, "fedge_test_loads", 0)
    return count


def refusal(tmp_path: Path, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_plugins([Path(name)], tmp_path, "agent.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    path = written(tmp_path / "one.py")
    assert load_plugin(path) is load_plugin(path)
    load_plugins([Path("one.py"), Path("one.py")], tmp_path, "agent.yaml")
    assert loads() == 1


def test_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    written(tmp_path / "below" / "one.py")
    load_plugins([Path("below/one.py")], tmp_path, "agent.yaml")
    assert loads() == 1


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "one.py")
    load_plugins([Path("~/one.py")], Path("/elsewhere"), "agent.yaml")
    assert loads() == 1


def test_a_copy_is_the_same_plug_in(tmp_path: Path) -> None:
    copies = [written(tmp_path / folder / "one.py") for folder in ("a", "b")]
    assert load_plugin(copies[0]) is load_plugin(copies[1])
    assert loads() == 1


def test_the_module_has_a_stable_name_under_which_it_is_found(tmp_path: Path) -> None:
    module = load_plugin(written(tmp_path / "my-mean.py", "class Mean: pass\n"))
    assert module.__name__ == "fedge_plugin_my_mean_781f275a"
    assert sys.modules[module.Mean.__module__] is module
    assert module.__file__ == str(tmp_path / "my-mean.py")


def test_two_files_of_one_name_are_two_plug_ins(tmp_path: Path) -> None:
    one = load_plugin(written(tmp_path / "a" / "mean.py", "value = 1\n"))
    two = load_plugin(written(tmp_path / "b" / "mean.py", "value = 2\n"))
    assert (one.value, two.value) == (1, 2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    expected = f"agent.yaml: plugins[0]: {tmp_path}/gone.py: no such file; check the path"
    assert refusal(tmp_path, "gone.py") == expected


def test_a_folder_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    assert refusal(tmp_path, "folder.py").endswith("folder.py: cannot be read: Is a directory")
    written(tmp_path / "notes.txt")
    assert refusal(tmp_path, "notes.txt").endswith("notes.txt: a plug-in is a .py file")


@pytest.mark.parametrize(
    ("source", "line"),
    [("x = 1\ndef f(:\n", 2), ("federation: a\nagent_id: b c\n", 2), ("\n\n  indented\n", 3)],
)
def test_what_is_not_python_is_refused_with_its_line(
    tmp_path: Path, source: str, line: int
) -> None:
    written(tmp_path / "one.py", source)
    assert f"{tmp_path}/one.py, line {line}: not Python: " in refusal(tmp_path, "one.py")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_bytes(b"\x00\xff\xfe")
    assert refusal(tmp_path, "one.py").startswith(f"agent.yaml: plugins[0]: {tmp_path}/one.py")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("\nraise ValueError('too\\nlong')\n", "line 2: ValueError: too"),
        ("import no_such_package\n", "line 1: ModuleNotFoundError: No module named"),
        ("def f():\n    return 1 / 0\nf()\n", "line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('so')\n", "line 2: Odd: so"),
        ("import json\n\njson.loads('{')\n", "line 3: JSONDecodeError: Expecting property"),
    ],
)
def test_what_raises_while_loading_is_refused_with_its_line(
    tmp_path: Path, source: str, expected: str
) -> None:
    written(tmp_path / "one.py", source)
    assert f"plugins[0]: {tmp_path}/one.py, {expected}" in refusal(tmp_path, "one.py")


def test_a_file_that_failed_is_tried_again(tmp_path: Path) -> None:
    path = written(tmp_path / "one.py", "import sys\nvalue = 1 / sys.fedge_test_loads\n")
    with pytest.raises(ConfigError, match="AttributeError"):
        load_plugin(path)
    sys.fedge_test_loads = 2  # type: ignore[attr-defined]
    assert load_plugin(path).value == 0.5


REGISTERING = """
from learning.codecs.registry import CODECS
from learning.registry import Settings

class SignSettings(Settings, frozen=True, tag="sign"):
    pass

@CODECS.add
class Sign:
    settings_type = SignSettings
"""


def test_what_a_file_registered_before_it_raised_is_taken_back(tmp_path: Path) -> None:
    path = written(tmp_path / "one.py", REGISTERING + "raise ValueError('after all')\n")
    with pytest.raises(ConfigError, match="after all"):
        load_plugin(path)
    assert "sign" not in CODECS
    other = load_plugin(written(tmp_path / "two.py", REGISTERING))
    assert CODECS["sign"] is other.Sign


def test_a_member_that_was_replaced_before_the_file_raised_is_back(tmp_path: Path) -> None:
    before = load_plugin(written(tmp_path / "one.py", REGISTERING)).Sign
    again = "Sign.__module__ = sign.__module__\nCODECS.add(Sign)\n1 / 0\n"
    source = REGISTERING.replace("@CODECS.add\n", "sign = CODECS['sign']\n") + again
    with pytest.raises(ConfigError, match="division by zero"):
        load_plugin(written(tmp_path / "two.py", source))
    assert CODECS["sign"] is before
