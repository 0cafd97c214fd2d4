"""Comparison of a few results: their figures as rows, and their curves in one picture."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.report import bytes_text
from fedge.errors import ConfigError
from fleet.experiments.results import Report
from fleet.in_memory.result import Result, new_axes
from fleet.in_memory.values import plain


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Results side by side.

    Attributes:
        results: by label.
        metric: that is compared.
        target: of it, for the rounds and bytes until it is reached; None: no target.
    """

    results: Mapping[str, Result]
    metric: str
    target: float | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a result, as for `pandas.DataFrame`: label, final value, rounds, bytes."""
        return [self._row(label, result) for label, result in self.results.items()]

    def _row(self, label: str, result: Result) -> dict[str, Any]:
        report = Report(result.report)
        values = report.curve(self.metric).values
        best = values.min() if report.curve(self.metric).falls else values.max()
        row = {
            "label": label,
            self.metric: float(values[-1]),
            "best": float(best),
            "rounds": len(report.rounds),
            "bytes_up": report.final["bytes_up"],
            "bytes_down": report.final["bytes_down"],
        }
        if self.target is None:
            return row
        found = report.crossing(self.metric, self.target)
        return row | {
            "rounds_to_target": None if found is None else found.rounds,
            "bytes_to_target": None if found is None else found.bytes_both,
        }

    def plot(self, *, ax: Any = None) -> Any:
        """Draws the curves; returns matplotlib's axes.

        Raises:
            ConfigError: matplotlib is missing.
        """
        axes = new_axes() if ax is None else ax
        for label, result in self.results.items():
            result.plot(self.metric, ax=axes, label=label)
        if self.target is not None:
            axes.axhline(self.target, color="grey", linestyle="--", linewidth=0.8)
        return axes

    def _cells(self) -> list[list[str]]:
        rows = self.rows
        return [list(rows[0]), *([_cell(key, row[key]) for key in row] for row in rows)]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = (
            "  ".join(
                text.rjust(width) if number else text.ljust(width)
                for number, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        )
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        titles = "".join(f"<th>{html.escape(text)}</th>" for text in head)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows
        )
        return f"<table><tr>{titles}</tr>{body}</table>"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.startswith("bytes"):
        return bytes_text(value)
    if key == "rounds_to_target":
        return f"{value:.1f}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def compare(
    results: Mapping[str, Result] | Sequence[Result],
    *,
    metric: str | None = None,
    target: float | None = None,
) -> Comparison:
    """Returns results side by side; one run each, for many seeds see `fedge experiment`.

    Args:
        results: by label; or one behind the other: their labels are then the names of their
            algorithms, where these differ, else their places, from 1.
        metric: to compare; None: the first there is, of the central rows if there are any.
        target: of the metric: rounds and bytes until the monotone curve reaches it.

    Raises:
        ConfigError: there are no results, or one of them lacks the metric.
    """
    if not results:
        raise ConfigError("there are no results to compare: give them by label, {label: result}")
    labelled = _labelled(results)
    wanted = metric or next(iter(labelled.values())).main_metric
    for label, result in labelled.items():
        try:
            Report(result.report).curve(wanted)
        except ConfigError as error:
            raise ConfigError(f"{label}: {error}") from error
    return Comparison(labelled, wanted, plain(target))


def _labelled(results: Any) -> dict[str, Result]:
    if not isinstance(results, Mapping | list | tuple):
        raise ConfigError(
            f"compare: results is a {type(results).__name__}: give them by label, "
            "{label: result}, or in a list"
        )
    given = list(results.items() if isinstance(results, Mapping) else enumerate(results, 1))
    for label, result in given:
        if not isinstance(result, Result):
            raise ConfigError(
                f"compare: {label} is a {type(result).__name__}, expected what simulate returns"
            )
    if not isinstance(results, Mapping):
        algorithms = [result.algorithm for result in results]
        if all(algorithms) and len(set(algorithms)) == len(algorithms):
            return dict(zip(algorithms, results, strict=True))
    return {str(label): result for label, result in given}
