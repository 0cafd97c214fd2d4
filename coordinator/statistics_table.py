"""Statistics of a federation's columns as a table for people and as a JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from coordinator.records.records import RoundRecord
from fedge.limits import printable
from learning.phases.statistics import Moments

#: Longer names are cut in the table.
_NAME_CHARS = 40


def answer_document(record: RoundRecord) -> dict[str, Any]:
    """Returns the answer of a round as JSON-ready values; null where there is no number."""
    answer: dict[str, Any] = {"values": record.values}
    if record.statistics:
        answer = {"columns": {name: _column(c) for name, c in record.statistics.items()}}
    return {
        "round_id": record.round_id,
        "asked": record.asked,
        "reported": record.reported,
        "declined": dict(sorted(record.declined.items())),
        "details": dict(sorted(record.details.items())),
        **answer,
    }


def _column(column: Moments) -> dict[str, Any]:
    found: dict[str, Any] = {
        "count": int(column.count),
        "missing": int(column.missing),
        "weight": column.weight,
        "sum": column.sum,
        "mean": column.mean if column.weight else None,
        "variance": column.variance if column.weight else None,
        "std": column.std if column.weight else None,
        "min": column.minimum if column.count else None,
        "max": column.maximum if column.count else None,
    }
    if column.edges:
        histogram = {"edges": list(column.edges), "weights": list(column.histogram)}
        found["histogram"] = histogram
    return found


def statistics_lines(columns: Mapping[str, Moments]) -> list[str]:
    """Returns the table of columns, and below it their histograms."""
    weighted = any(column.weight != column.count for column in columns.values())
    head = ["column", "count", "missing", *(["weight"] if weighted else [])]
    rows = [[*head, "mean", "std", "min", "max"]]
    for name, column in columns.items():
        rows.append(_cells(name, column, weighted=weighted))
    lines = _aligned(rows)
    for name, column in columns.items():
        if column.edges:
            bins = list(zip(_ranges(column.edges), column.histogram, strict=True))
            unit = "weight" if weighted else "numbers"
            cells = [[_name(name), unit], *([where, f"{weight:,.10g}"] for where, weight in bins)]
            lines += ["", *_aligned(cells)]
    return lines


def _cells(name: str, column: Moments, *, weighted: bool) -> list[str]:
    moments = [column.mean, column.std] if column.weight else [None, None]
    extremes = [column.minimum, column.maximum] if column.count else [None, None]
    counts = [f"{column.count:,.0f}", f"{column.missing:,.0f}"]
    counts += [f"{column.weight:,.10g}"] if weighted else []
    numbers = ["-" if value is None else f"{value:.6g}" for value in (*moments, *extremes)]
    return [_name(name), *counts, *numbers]


def _ranges(edges: Sequence[float]) -> list[str]:
    inner = [f"{low:.6g} to {high:.6g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:.6g}", *inner, f"{edges[-1]:.6g} and above"]


def _name(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _NAME_CHARS else f"{shown[: _NAME_CHARS - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
