"""Learning curves: a metric over rounds, or over bytes; mean and band over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleet.experiments.curves import F64, Curve
from fleet.experiments.estimates import LEVEL, t_quantile
from fleet.experiments.pictures.canvas import (
    View,
    add_legend,
    add_target,
    byte_ticks,
    label_of,
    new_figure,
    refuse_empty,
    style,
    unit_of,
    whole_numbers,
)

#: Curves of fewer points get a marker at each.
_FEW = 12
#: Bytes that differ by this factor are shown on a logarithmic axis.
_WIDE = 50.0


@dataclass(frozen=True, eq=False)
class MeanCurve:
    """Mean of the curves of several seeds, at the rounds that all of them measured.

    Attributes:
        n: number of seeds.
        rounds: shape (m,).
        mean: of the values; shape (m,).
        sd: standard deviation with n - 1; zeros for one seed.
        spent: mean of the bytes until each round; shape (m,).
    """

    n: int
    rounds: F64
    mean: F64
    sd: F64
    spent: F64

    def half_width(self, band: str) -> F64:
        """Returns half of the band's width: `sd`, `ci` (95 % interval of the mean) or `none`."""
        if band == "none" or self.n < 2:
            return np.zeros_like(self.mean)
        factor = 1.0
        if band == "ci":
            factor = t_quantile((1 + LEVEL) / 2, self.n - 1) / np.sqrt(self.n)
        return np.asarray(factor * self.sd)


def mean_curve(curves: Sequence[Curve], direction: str = "both") -> MeanCurve:
    """Returns the mean of curves of one metric.

    Args:
        curves: at least one; seeds that stopped early end the mean curve.
        direction: of the bytes: up, down or both.
    """
    rounds = curves[0].rounds
    for curve in curves[1:]:
        rounds = np.intersect1d(rounds, curve.rounds)
    where = [np.searchsorted(curve.rounds, rounds) for curve in curves]
    values = np.stack([c.values[i] for c, i in zip(curves, where, strict=True)])
    spent = np.stack(
        [getattr(c, f"bytes_{direction}")[i] for c, i in zip(curves, where, strict=True)]
    )
    n = len(curves)
    sd = values.std(axis=0, ddof=1) if n > 1 else np.zeros(len(rounds))
    return MeanCurve(n, rounds, values.mean(axis=0), sd, spent.mean(axis=0))


def draw_curves(view: View) -> Any:
    """Returns a figure of the metric over rounds.

    Raises:
        ConfigError: matplotlib is missing, or no run has the metric.
    """
    return _draw(view, over_bytes=False)


def draw_bytes(view: View) -> Any:
    """Returns a figure of the metric over bytes; raises like `draw_curves`."""
    return _draw(view, over_bytes=True)


def _draw(view: View, *, over_bytes: bool) -> Any:
    found = [
        (case, mean_curve([r.curve(view.metric) for r in reports.values()], view.direction))
        for case in view.cases
        if (reports := view.experiment.reports(case))
    ]
    if not found or not any(len(curve.rounds) for _, curve in found):
        raise refuse_empty(view, f"round with {view.metric}")
    figure, grid = new_figure(6.4, 4.0)
    axes = grid[0, 0]
    for number, (case, curve) in enumerate(found):
        x = curve.spent if over_bytes else curve.rounds
        look = style(number)
        marker = {"marker": "o", "markersize": 3} if len(x) <= _FEW else {}
        axes.plot(x, curve.mean, label=view.label(case), linewidth=1.6, **marker, **look)
        half = curve.half_width(view.band)
        if half.any():
            low, high = curve.mean - half, curve.mean + half
            axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    if over_bytes:
        _name_bytes(axes, view, [curve for _, curve in found])
    else:
        axes.set_xlabel("round")
        whole_numbers(axes.xaxis)
    axes.set_ylabel(label_of(view.metric, unit_of(view.experiment, view.metric)))
    axes.set_title(view.title + _band_words(view, found), fontsize=10, loc="left")
    axes.margins(x=0.02)
    add_target(axes, view.target)
    add_legend(axes, len(found))
    return figure


def _name_bytes(axes: Any, view: View, curves: Sequence[MeanCurve]) -> None:
    words = {"both": "bytes up and down", "up": "bytes up", "down": "bytes down"}
    axes.set_xlabel(f"{words[view.direction]}, all agents together")
    ends = [float(curve.spent[-1]) for curve in curves if len(curve.spent)]
    first = min(float(curve.spent[0]) for curve in curves if len(curve.spent))
    if min(ends) > 0 and max(ends) > _WIDE * min(ends) and first > 0:
        axes.set_xscale("log")
    byte_ticks(axes.xaxis)


def _band_words(view: View, found: Sequence[tuple[Any, MeanCurve]]) -> str:
    if view.band == "none" or all(curve.n < 2 for _, curve in found):
        return ""
    return " · " + {"sd": "mean ± sd", "ci": "mean, 95 % interval"}[view.band]
