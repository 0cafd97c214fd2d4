"""Check of a `report.json` that is read again: the keys that tables and pictures need."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fedge.errors import ConfigError
from fedge.yaml_config import parse_config

#: Larger whole numbers are not exact as float64, in which curves are kept.
_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
_Figures = dict[str, float | None]


class _Agent(msgspec.Struct, frozen=True, kw_only=True):
    loss: float | None
    metrics: _Figures
    num_examples: _Count = 0


class _Spent(msgspec.Struct, frozen=True, kw_only=True):
    bytes_up: _Count
    bytes_down: _Count
    seconds: float


class _Round(_Spent, frozen=True, kw_only=True):
    round_id: _Count
    status: str
    version: _Count
    loss: float | None
    metrics: _Figures
    train_loss: float | None = None
    train_metrics: _Figures = {}
    evaluated: bool = True
    agents: dict[str, _Agent] = {}


class _InUnits(msgspec.Struct, frozen=True, kw_only=True):
    unit: str = ""


class _Final(_Spent, frozen=True, kw_only=True):
    version: _Count
    loss: float | None
    metrics: _Figures
    in_units: dict[str, _InUnits] = {}
    matrices: dict[str, list[list[float]]] = {}

    def __post_init__(self) -> None:
        for name, matrix in self.matrices.items():
            if not matrix or any(len(row) != len(matrix) for row in matrix):
                raise ValueError(f"matrices.{name}: expected as many columns as rows")


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    versions: dict[str, Any] = {}


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    scenario: str
    rounds: list[Any]
    final: _Final
    seed: int | None = None
    unseen: list[str] = []
    classes: list[str] = []
    run: _Run = _Run()
    configuration: dict[str, Any] = {}


def check_report(document: Mapping[str, Any], file: Path) -> None:
    """Checks that a report has what is read of it, each of its type; other keys are free.

    Args:
        document: parsed JSON.
        file: it came from, for messages.

    Raises:
        ConfigError: names the first key that is missing or of another type.
    """
    try:
        report = parse_config(document, _Report, "")
        # One at a time: a round may hold a million agents.
        ids = [
            parse_config(record, _Round, "", key=f"rounds[{number}]").round_id
            for number, record in enumerate(report.rounds)
        ]
    except ConfigError as error:
        raise damaged(file, str(error)) from error
    for number, (before, after) in enumerate(itertools.pairwise(ids), 1):
        if after <= before:
            raise damaged(
                file, f"rounds[{number}].round_id: expected more than {before}, got {after}"
            )


def damaged(file: Path, why: str) -> ConfigError:
    """Returns the error of a report that cannot be used."""
    return ConfigError(f"{file} is not a report, or damaged: {why}; repeat the run")
