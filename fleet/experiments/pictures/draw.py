"""Every kind of picture by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError
from fleet.experiments.experiment import Experiment
from fleet.experiments.pictures.agents import draw_agents
from fleet.experiments.pictures.canvas import View, check_suffix, save
from fleet.experiments.pictures.confusion import draw_confusion, matrix_names
from fleet.experiments.pictures.curves import draw_bytes, draw_curves

KINDS: Mapping[str, Callable[[View], Any]] = {
    "curves": draw_curves,
    "bytes": draw_bytes,
    "agents": draw_agents,
    "confusion": draw_confusion,
}


def make_view(
    experiment: Experiment,
    kind: str,
    metric: str | None = None,
    cases: Sequence[str] = (),
    band: str = "sd",
    direction: str = "both",
) -> View:
    """Returns what a picture shows.

    Args:
        experiment: with its reports.
        kind: of the picture, see `KINDS`.
        metric: of the models, of confusion matrices the matrix; None: the experiment's default.
        cases: names of cases; empty: all.
        band: around means: sd, ci or none.
        direction: of bytes: up, down or both.

    Raises:
        ConfigError: there is no such case, no run is done, or no matrix.
    """
    chosen = experiment.chosen(cases)
    target = experiment.index.target
    if kind == "confusion":
        view = View(experiment, chosen, metric or "")
        names = [metric] if metric else matrix_names(view)
        if not names:
            experiment.any_report()  # raises where no run is done
            raise ConfigError(f"{experiment.folder}: its models have no metric of kind confusion")
        return replace(view, metric=names[0])
    name = metric or experiment.default_metric()
    value = target.value if target and target.metric == name else None
    return View(experiment, chosen, name, band, direction, value)


def draw(view: View, kind: str) -> Any:
    """Returns a matplotlib figure.

    Raises:
        ConfigError: matplotlib is missing, or there is nothing to draw.
    """
    return KINDS[kind](view)


def write_picture(view: View, kind: str, path: Path) -> None:
    """Draws a picture into a file; raises like `draw`, and where the file cannot be written."""
    check_suffix(path)
    save(draw(view, kind), path)
