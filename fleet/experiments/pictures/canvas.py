"""Figures without a display: size, colours, title, file; matplotlib is imported here only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedge.console import counted
from fedge.errors import ConfigError, one_line
from fleet.experiments.experiment import Case, Experiment

#: Okabe and Ito 2008, "Color universal design": told apart by colour-blind people as well. Without
#: yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: Curves that lie on one another stay visible, and a black and white print is readable.
LINES = ("-", "--", "-.", ":")
SUFFIXES = (".png", ".svg", ".pdf")
_DPI = 150
_GREY = "#666666"
#: Legends of more cases stand beside the axes.
_INSIDE = 6
#: Points: size of a label beside the axes, and the width of a letter at most.
_LABEL_SIZE = 7
_LABEL_LETTER = 4.6


@dataclass(frozen=True)
class View:
    """Cases and metric that a picture shows.

    Attributes:
        experiment: with its reports.
        cases: to show; at least one run of them is done.
        metric: shown; of confusion matrices the name of the matrix.
        band: around the mean of several seeds: standard deviation, 95 % confidence interval, none.
        direction: of bytes.
        target: a line across; None: none.
    """

    experiment: Experiment
    cases: Sequence[Case]
    metric: str
    band: str = "sd"
    direction: str = "both"
    target: float | None = None
    _classes: Sequence[str] = field(default=(), repr=False)

    @property
    def title(self) -> str:
        """Scenarios, and the number of seeds."""
        scenarios = ", ".join(dict.fromkeys(case.scenario for case in self.cases))
        seeds = {len(self._done(case)) for case in self.cases} - {0}
        few, many = min(seeds, default=0), max(seeds, default=0)
        return f"{scenarios} · {f'{few} to ' if few < many else ''}{counted(many, 'seed')}"

    def label(self, case: Case) -> str:
        """Returns the name of a case, with its number of seeds where that differs between cases."""
        counts = {len(self._done(other)) for other in self.cases}
        return case.name if len(counts) == 1 else f"{case.name} (n = {len(self._done(case))})"

    def _done(self, case: Case) -> list[Any]:
        return [run for run in self.experiment.runs(case) if run.status == "done"]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Returns a figure and an array of its axes, shape (rows, columns).

    Args:
        width, height: in inches.
        rows, columns: of axes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("matplotlib is missing: pip install 'fedge[plot]'") from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(True, color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def style(number: int) -> dict[str, Any]:
    """Returns colour and line of the case with this number, from 0."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
    }


def add_legend(axes: Any, entries: int) -> None:
    """Adds a legend where there is more than one entry: inside the axes, or beside them.

    Beside them it stands to the right of every text that is there already.
    """
    if entries < 2:
        return
    if entries <= _INSIDE:
        axes.legend(frameon=False, fontsize=8)
    else:
        from matplotlib.transforms import offset_copy

        points = max((_LABEL_LETTER * len(text.get_text()) for text in axes.texts), default=0)
        beside = offset_copy(axes.transAxes, axes.figure, x=points + 2, units="points")
        axes.legend(
            frameon=False,
            fontsize=8,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            bbox_transform=beside,
        )


def add_target(axes: Any, value: float | None) -> None:
    """Draws a target as a thin line across, with its value beside the axes: curves stay free."""
    if value is None:
        return
    axes.axhline(value, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"target {value:g}",
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=_LABEL_SIZE,
        color=_GREY,
    )


def whole_numbers(axis: Any) -> None:
    """Puts ticks of an axis on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def byte_ticks(axis: Any) -> None:
    """Writes ticks of an axis as bytes: kB, MB."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(unit="B"))


def label_of(metric: str, unit: str = "") -> str:
    """Returns an axis' label for a metric: `unseen_mae` is `mae on unseen agents`."""
    for start, words in (
        ("unseen_", "on unseen agents"),
        ("central_", "on the coordinator's data"),
        ("train_", "while training"),
    ):
        if metric.startswith(start):
            metric = f"{metric.removeprefix(start)} {words}"
    return f"{metric} ({unit})" if unit else metric


def unit_of(experiment: Experiment, metric: str) -> str:
    """Returns the unit of a metric that has the target's unit; empty for others."""
    found = experiment.any_report().document["final"].get("in_units", {})
    return str(found.get(metric, {}).get("unit", ""))


def check_suffix(path: Path) -> None:
    """Checks the kind of a picture's file.

    Raises:
        ConfigError: it is not .png, .svg or .pdf.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {path}: a picture is a file of {', '.join(SUFFIXES)}")


def save(figure: Any, path: Path) -> None:
    """Writes a picture; the same results make the same file.

    Raises:
        ConfigError: the kind is unknown, or the file cannot be written.
    """
    check_suffix(path)
    from matplotlib import rc_context

    dates: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.hashsalt": "fedge"}):
            figure.savefig(path, metadata=dates.get(path.suffix.lower()))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {one_line(error)}") from error


def refuse_empty(view: View, what: str, known: Iterable[str] = ()) -> ConfigError:
    """Returns the error of a picture that would be empty."""
    has = ", ".join(known)
    return ConfigError(
        f"{view.experiment.folder}: no {what} to draw" + (f"; there are: {has}" if has else "")
    )
