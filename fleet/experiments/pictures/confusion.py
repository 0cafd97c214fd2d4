"""Confusion matrices of final models, summed over seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedge.errors import ConfigError
from fleet.experiments.curves import F64
from fleet.experiments.experiment import Case
from fleet.experiments.pictures.canvas import View, new_figure, refuse_empty

_MOST_CASES = 6
#: Cells of larger matrices have no number in them.
_NUMBERS = 15
#: Names of more classes overlap.
_NAMES = 40


def draw_confusion(view: View) -> Any:
    """Returns a figure with one matrix for each case; rows are true classes, in percent of each.

    Raises:
        ConfigError: matplotlib is missing, no run has a matrix of this name, or there are too many
            cases.
    """
    if len(view.cases) > _MOST_CASES:
        raise ConfigError(
            f"{view.experiment.folder}: {len(view.cases)} confusion matrices in one picture, at "
            f"most {_MOST_CASES}: choose with --case"
        )
    found = [(case, m) for case in view.cases if (m := _summed(view, case)) is not None]
    if not found:
        raise refuse_empty(view, f"confusion matrix {view.metric!r}", matrix_names(view))
    columns = 2 if len(found) == 4 else min(3, len(found))
    rows = math.ceil(len(found) / columns)
    size = 3.4 if len(found) > 1 else 4.8
    figure, grid = new_figure(size * columns + 0.6, size * rows + 0.3, rows, columns)
    classes = list(view.experiment.any_report().document.get("classes", []))
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    image = None
    for axes, (case, matrix) in zip(grid.flat, found, strict=False):
        image = _draw_one(axes, matrix, classes)
        if len(found) > 1:
            axes.set_title(view.label(case), fontsize=9)
    bar = figure.colorbar(image, ax=grid, shrink=0.8)
    bar.set_label("percent of the true class")
    figure.suptitle(f"{view.title} · {view.metric}", fontsize=10, x=0.01, ha="left")
    return figure


def matrix_names(view: View) -> list[str]:
    """Returns the names of all matrices of the cases' reports."""
    reports = (r for case in view.cases for r in view.experiment.reports(case).values())
    return list({name: None for report in reports for name in report.matrices})


def in_percent(matrix: F64) -> F64:
    """Returns each row in percent of its sum; rows without an entry are zero."""
    total = matrix.sum(axis=1, keepdims=True)
    return np.divide(100 * matrix, total, out=np.zeros_like(matrix), where=total > 0)


def _summed(view: View, case: Case) -> F64 | None:
    found = {
        seed: np.array(report.matrices[view.metric], float)
        for seed, report in view.experiment.reports(case).items()
        if view.metric in report.matrices
    }
    sizes = {len(matrix): seed for seed, matrix in reversed(found.items())}
    if len(sizes) > 1:
        told = " and ".join(f"{size} classes (seed {sizes[size]})" for size in sorted(sizes)[:2])
        raise ConfigError(
            f"{view.experiment.folder}: {case.name}: {view.metric} has {told}: runs of different "
            "models cannot be summed; run the experiment again with --fresh"
        )
    return np.sum(list(found.values()), axis=0) if found else None


def _draw_one(axes: Any, matrix: F64, classes: list[str]) -> Any:
    percent, count = in_percent(matrix), len(matrix)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if count <= _NUMBERS:
        for row, column in np.ndindex(*percent.shape):
            value = percent[row, column]
            colour = "white" if value > 55 else "black"
            text = f"{value:.0f}" if value >= 0.5 else "·" if matrix[row, column] else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    if len(classes) == count and count <= _NAMES:
        turn = 90 if max(map(len, classes)) > 3 else 0
        axes.set_xticks(range(count), classes, rotation=turn, fontsize=7)
        axes.set_yticks(range(count), classes, fontsize=7)
    axes.set_xlabel("predicted class", fontsize=8)
    axes.set_ylabel("true class", fontsize=8)
    return image
