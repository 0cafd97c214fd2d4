"""Configuration files: what loads, and the one line that comes out when one does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from fedge.errors import ConfigError
from fedge.yaml_config import MAX_CONFIG_BYTES, load_config, located, parse_config


class Round(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    report_goal: int = 10
    min_reports: int = 3
    deadline_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_reports <= self.report_goal:
            raise ValueError(
                f"min_reports must be 1..report_goal ({self.report_goal}), got {self.min_reports}"
            )


class Mean(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind",
    tag="mean",
):  # fmt: skip
    weighted: bool = True


class Median(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind",
    tag="median",
):  # fmt: skip
    trim: float


class Mode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    mode: Literal["fast", "slow"]


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    round: Round = Round()
    codec: Literal["float32", "int8"] = "int8"
    aggregator: Mean | Median = Mean()
    sites: dict[str, Round] = {}
    stages: tuple[Round, ...] = ()
    modes: list[Mode] = []
    pair: tuple[int, float] = (1, 1.0)
    extra: Round | None = None
    store: Path | None = None
    password: str = ""
    rate: float = 0.1


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "coordinator.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def message(folder: Path, text: str | bytes) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Service)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_full_configuration_loads_with_defaults_where_keys_are_absent(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        name: väg 4
        round: {report_goal: 5}
        aggregator: {kind: median, trim: 0.2}
        sites:
          north: {min_reports: 1}
        stages: [{deadline_s: 5}, {}]
        store: data/store.db
        """,
    )
    config = load_config(path, Service)
    assert config.name == "väg 4"
    assert config.round == Round(report_goal=5, min_reports=3, deadline_s=600.0)
    assert config.aggregator == Median(trim=0.2)
    assert config.sites == {"north": Round(min_reports=1)}
    assert config.stages == (Round(deadline_s=5.0), Round())
    assert config.store == Path("data/store.db")


@pytest.mark.parametrize("number", ["1e-5", "1.0e-5", "1.e-5", "+1E-05", "0.00001"])
def test_small_numbers_are_read_in_every_notation(tmp_path: Path, number: str) -> None:
    assert load_config(write(tmp_path, f"name: a\nrate: {number}"), Service).rate == 1e-5


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "name: a\nround: &r {report_goal: 7}\nextra: {<<: *r, min_reports: 2}"
    assert load_config(write(tmp_path, text), Service).extra == Round(report_goal=7, min_reports=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys, at each kind of nesting
        (
            "name: a\nround: {deadline: 3}",
            "round.deadline: unknown key; did you mean deadline_s? "
            "known keys: deadline_s, min_reports, report_goal",
        ),
        ("name: a\nzzzzz: 3", "zzzzz: unknown key; known keys: aggregator, codec, extra, modes,"),
        ("name: a\nsites: {n.w: {x: 1}}", "sites.n.w.x: unknown key; known keys: deadline_s"),
        ("name: a\nstages: [{}, {x: 1}]", "stages[1].x: unknown key; known keys: deadline_s"),
        (
            "name: a\nextra: {report_gaol: 1}",
            "extra.report_gaol: unknown key; did you mean report_goal?",
        ),
        (
            "name: a\naggregator: {kind: mean, trim: 1}",
            "aggregator.trim: unknown key; known keys: kind, weighted",
        ),
        # wrong types and values
        (
            "name: a\nround: {report_goal: many}",
            "round.report_goal: expected a whole number, got 'many'",
        ),
        ("name: a\nround: 3", "round: expected a mapping of keys, got 3"),
        ("name: a\nstages: {a: 1}", "stages: expected a list, got a mapping of keys (a)"),
        ("name: a\nstages: [1]", "stages[0]: expected a mapping of keys, got 1"),
        ("name: a\npair: [1, x]", "pair[1]: expected a number, got 'x'"),
        ("name: a\nround: {deadline_s: 0}", "round.deadline_s: expected a number > 0.0, got 0"),
        ("name: a\nround: {report_goal: }", "round.report_goal: expected a whole number, got noth"),
        ("name: no", "name: expected text, got false; quote it to make it text"),
        ("name: 2024-01-31", "name: expected text, got datetime.date(2024, 1, 31); quote it"),
        ("name: a\ncodec: int4", "codec: expected one of: float32, int8, got 'int4'"),
        ("name: a\naggregator: {kind: max}", "aggregator.kind: expected one of: mean, median, got"),
        ("name: a\nextra: [1]", "extra: expected a mapping of keys or null, got a list of 1"),
        ("name: a\nstore: 3", "store: expected a path as text"),
        ("name: a\nsites: {3: {}}", "sites: the key 3 must be text; quote it"),
        ("name: a\n3: 4", "the key 3 must be text; quote it"),
        ("just text", "expected a mapping of keys, got 'just text'"),
        ("- a", "expected a mapping of keys, got a list of 1"),
        # missing keys
        ("codec: int8", "name: required key is missing"),
        ("name: a\naggregator: {kind: median}", "aggregator.trim: required key is missing"),
        ("name: a\nmodes: [{}]", "modes[0].mode: required key is missing; one of: fast, slow"),
        (
            "name: a\naggregator: {trim: 1}",
            "aggregator.kind: required key is missing; one of: mean, median",
        ),
        # relations between keys, at each kind of nesting
        (
            "name: a\nround: {min_reports: 0}",
            "round: min_reports must be 1..report_goal (10), got 0",
        ),
        ("name: a\nsites: {a: {}, b: {min_reports: 11}}", "sites.b: min_reports must be 1..report"),
        ("name: a\nstages: [{}, {min_reports: 11}]", "stages[1]: min_reports must be 1..report_g"),
        ("name: a\nextra: {min_reports: 11}", "extra: min_reports must be 1..report_goal (10)"),
        # duplicate keys
        ("name: a\nname: b", "name: duplicate key, on lines 1 and 2; keep one"),
        (
            "name: a\nstages:\n- {}\n- min_reports: 1\n  min_reports: 1",
            "stages[1].min_reports: duplicate key, on lines 4 and 5; keep one",
        ),
        # no YAML
        ("name: a\nround: {]", "line 2: not YAML: "),
        ("name: a\n\tround: 1", "line 2: not YAML: "),
        ("name: a\nround: *nobody", "line 2: not YAML: found undefined alias"),
        ("name: !!python/object:os.system {}", "line 1: not YAML: could not determine a constr"),
        ("name: a\n---\nname: b", "line 2: not YAML: but found another document"),
        ("name: 2024-13-40", "not usable YAML: month must be in 1..12"),
        (b"name: a\ncodec: \xff\xfe", "line 2: not YAML: not UTF-8 text"),
        (b"name: a\ncodec: \x00", "line 2: not YAML: not UTF-8 text"),
        ("", "the file is empty"),
        ("# a comment\n", "the file is empty"),
        ("name: a\nsites: &s {a: *s}", "nested more than 50 keys deep"),
    ],
)
def test_each_mistake_is_one_line_with_file_and_dotted_key(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    assert message(tmp_path, text).startswith(expected)


def test_aliases_that_double_with_every_line_are_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert message(tmp_path, "\n".join(lines)).startswith("more than 100000 values")


def test_a_password_of_the_wrong_type_is_not_shown(tmp_path: Path) -> None:
    line = message(tmp_path, "name: a\npassword: 20221")
    assert line == "password: expected text, got a int; quote it to make it text"
    line = message(tmp_path, "name: a\nextra: http://pi:20221@proxy")
    assert line == "extra: expected a mapping of keys or null, got text that may hold a login"


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    line = message(tmp_path, f"name: a\ncodec: {'x' * 5000}")
    assert len(line) < 150


def test_a_missing_file_names_the_folder_when_that_is_missing_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.yaml: no such file; check the path"):
        load_config(tmp_path / "agent.yaml", Service)
    with pytest.raises(ConfigError, match=r"there is no folder .*/etc2 either"):
        load_config(tmp_path / "etc2" / "agent.yaml", Service)


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, Service)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(path, Service)


def test_a_file_above_the_limit_is_refused_before_parsing(tmp_path: Path) -> None:
    assert message(tmp_path, b"{" * (MAX_CONFIG_BYTES + 1)).startswith("larger than 1048576 bytes")


# Just above our limit, above the limit that newer YAML parsers have, and where older ones crash.
@pytest.mark.parametrize("depth", [50, 1_001, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_deep_nesting_is_an_error_and_not_a_crash(
    tmp_path: Path, depth: int, opening: str, closing: str
) -> None:
    nested = "name: " + opening * depth + closing * depth
    assert message(tmp_path, nested) == "nested more than 50 keys deep"


def test_an_embedded_configuration_reports_its_place_in_the_outer_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"goal": 1}, Round, "fleet.yaml", key="agents[2].round")
    assert str(caught.value).startswith("fleet.yaml: agents[2].round.goal: unknown key;")


@pytest.mark.parametrize(("mapping", "expected"), [({}, Round()), ({"report_goal": 4}, Round(report_goal=4))])  # fmt: skip  # noqa: E501
def test_an_embedded_configuration_loads(mapping: dict[str, Any], expected: Round) -> None:
    assert parse_config(mapping, Round, "fleet.yaml") == expected


def test_paths_are_relative_to_the_file_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/pi")
    base = Path("/etc/fedge")
    assert located("data/x.npz", base) == Path("/etc/fedge/data/x.npz")
    assert located(Path("/var/x.npz"), base) == Path("/var/x.npz")
    assert located("~/x.npz", base) == Path("/home/pi/x.npz")
