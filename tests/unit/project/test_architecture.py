"""docs/architecture.md and the decision records: paths, rooms and names are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import broker.protocol.messages
import broker.service.events
import coordinator.machine.events
import coordinator.rounds.protocol
import edge_agent.machine.events

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/architecture.md"
RECORDS = sorted((ROOT / "docs/decisions").glob("*.md"))
PACKAGES = ("fedge", "learning", "models", "broker", "edge_agent", "coordinator", "fleet")
_PATH = re.compile(rf"`((?:{'|'.join(PACKAGES)}|docs|tests)/[\w/.]*)`")
_NAMES = (
    broker.protocol.messages,
    broker.service.events,
    coordinator.machine.events,
    coordinator.rounds.protocol,
    edge_agent.machine.events,
)


@pytest.mark.parametrize("page", [PAGE, *RECORDS], ids=lambda page: page.stem)
def test_every_path_that_is_named_exists(page: Path) -> None:
    paths = set(_PATH.findall(page.read_text()))
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_every_room_is_in_the_table() -> None:
    text = PAGE.read_text()
    for package in ("learning", "models", "broker", "edge_agent", "coordinator"):
        (row,) = re.findall(rf"(?m)^\| `{package}/` \|.*$", text)
        named = set(re.findall(rf"`{package}/(\w+)", row))
        rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert rooms <= named, package


def contract(name: str) -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    return next(one for one in contracts if one["name"] == name)


@pytest.mark.parametrize("package", ["learning", "edge_agent", "coordinator"])
def test_the_table_has_the_layers_that_are_checked(package: str) -> None:
    (row,) = re.findall(rf"(?m)^\| `{package}/` \| (.*?) \|.*$", PAGE.read_text())
    rooms = [sorted(re.findall(rf"`{package}/(\w+)", layer)) for layer in row.split(";")]
    layers = contract(f"{package}: layers")["layers"]
    assert rooms == [sorted(re.findall(r"\w+", layer)) for layer in layers]


def test_events_actions_and_messages_in_the_diagrams_are_the_code_s() -> None:
    diagrams = re.findall(r"(?s)```mermaid\n(.*?)```", PAGE.read_text())
    assert len(diagrams) == 3
    labels = re.findall(r"(?m)^ +\S+ --> \S+: (.*)$", "\n".join(diagrams))
    names = {name for label in labels for name in re.findall(r"\b[A-Z]\w+", label)}
    assert {"SpoolUpdate", "SaveOpenRound", "Receipt", "Abandon"} <= names
    known = {name for module in _NAMES for name in vars(module)}
    assert names <= known


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_decision_record_has_its_parts(record: Path) -> None:
    text = record.read_text()
    number = int(record.stem[:4])
    assert text.startswith(f"# {number}. ")
    assert "Status: accepted." in text
    assert "## Consequences" in text
