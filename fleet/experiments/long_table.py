"""The long table of an experiment: one row for each round of each run, as CSV.

import pandas
table = pandas.read_csv("table.csv")
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError
from fedge.files import write_whole
from fleet.experiments.experiment import Experiment
from fleet.experiments.naming import value_text

_FIRST = ("round", "status", "version", "asked", "reported", "refused", "stale", "evaluated")
_LAST = ("bytes_up", "bytes_down", "seconds")
#: Whether the version of a round is the one that was handed out, whose figures tables show.
_IS_BEST = "is_best"


def columns(experiment: Experiment) -> list[str]:
    """Returns the names of the columns.

    Raises:
        ConfigError: a report cannot be read.
    """
    metrics: dict[str, None] = {}
    for case in experiment.cases:
        for report in experiment.reports(case).values():
            metrics |= dict.fromkeys(_measured(report.history))
    return [
        "case",
        "scenario",
        *experiment.index.varied,
        "seed",
        *_FIRST,
        _IS_BEST,
        *metrics,
        *_LAST,
    ]


def rows(experiment: Experiment) -> Iterator[list[Any]]:
    """Yields a row for each round of each run that is done, in the order of `columns`.

    Args:
        experiment: with its reports; they are read one at a time.

    Raises:
        ConfigError: a report cannot be read.
    """
    varied = experiment.index.varied
    head = len(("case", "scenario", *varied, "seed"))
    names = columns(experiment)[head:]
    for case in experiment.cases:
        settings = [case.settings.get(key) for key in varied]
        for run in experiment.runs(case):
            if run.status != "done":
                continue
            report = experiment.report(run)
            for row in report.history:
                record = row | {_IS_BEST: row["round"] == report.best_round}
                known = [case.name, case.scenario, *settings, run.seed]
                yield known + [record.get(name) for name in names]


def write_csv(experiment: Experiment, path: Path) -> int:
    """Writes the long table; returns its number of rows.

    Raises:
        ConfigError: a report cannot be read, or the file cannot be written.
    """
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(experiment))
    count = 0
    for row in rows(experiment):
        writer.writerow([_cell(value) for value in row])
        count += 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.getvalue().encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return count


def _measured(history: Sequence[Mapping[str, Any]]) -> list[str]:
    known = {*_FIRST, *_LAST}
    return [name for record in history for name in record if name not in known]


def _cell(value: Any) -> Any:
    """Returns a value as a cell: an unknown one is empty, which pandas reads as NaN."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return value_text(value)
