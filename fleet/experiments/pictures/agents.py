"""Distribution of a metric over agents: how well the final model serves each of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fleet.experiments.curves import F64
from fleet.experiments.pictures.canvas import (
    View,
    label_of,
    new_figure,
    refuse_empty,
    style,
    unit_of,
)

#: Boxes of fewer agents show each agent as a dot.
_DOTS = 150
#: Inches that a letter of a case's name takes.
_LETTER = 0.065


def ecdf(values: F64) -> tuple[F64, F64]:
    """Returns the steps of the empirical distribution function.

    Args:
        values: shape (n,).

    Returns:
        Sorted values, and the share of values at or below each; shapes (n,).
    """
    ordered = np.sort(values)
    return ordered, np.arange(1, len(ordered) + 1) / len(ordered)


def draw_agents(view: View) -> Any:
    """Returns a figure of the metric's distribution over agents, seeds pooled.

    Raises:
        ConfigError: matplotlib is missing, or no agent has the metric.
    """
    found = [(case, values) for case in view.cases if len(values := _values(view, case))]
    if not found:
        raise refuse_empty(view, f"agent with {view.metric}")
    longest = max(len(view.label(case)) for case, _ in found)
    width, height = 8.0 + _LETTER * longest, max(3.6, 1.2 + 0.45 * len(found))
    figure, grid = new_figure(width, height, columns=2)
    left, right = grid[0]
    for number, (_, values) in enumerate(found):
        x, share = ecdf(values)
        left.step(
            np.concatenate([x[:1], x]),
            np.concatenate([[0.0], share]),
            where="post",
            linewidth=1.6,
            **style(number),
        )
    name = label_of(view.metric, unit_of(view.experiment, view.metric))
    left.set_xlabel(f"{name} of an agent")
    left.set_ylabel("share of agents at or below")
    left.set_ylim(0, 1.02)
    _draw_boxes(right, view, found)
    right.set_xlabel(f"{name} of an agent")
    figure.suptitle(f"{view.title} · {_counts(found)}", fontsize=10, x=0.01, ha="left")
    return figure


def _counts(found: list[tuple[Any, F64]]) -> str:
    """Returns how many values the distributions have: one for each agent and seed."""
    counts = sorted({len(values) for _, values in found})
    words = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{words} values, one per agent and seed"


def _values(view: View, case: Any) -> F64:
    reports = view.experiment.reports(case).values()
    return np.array([value for r in reports for value in r.agents(view.metric).values()])


def _draw_boxes(axes: Any, view: View, found: list[tuple[Any, F64]]) -> None:
    heights = list(range(len(found), 0, -1))
    parts = axes.boxplot(
        [values for _, values in found],
        positions=heights,
        orientation="horizontal",
        widths=0.55,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "black", "linewidth": 1.4},
    )
    shake = np.random.default_rng(0)  # the same picture each time
    for number, ((_, values), height) in enumerate(zip(found, heights, strict=True)):
        colour = style(number)["color"]
        parts["boxes"][number].set(facecolor=colour, alpha=0.35, edgecolor=colour)
        if len(values) <= _DOTS:
            y = height + shake.uniform(-0.18, 0.18, len(values))
            axes.plot(values, y, ".", color=colour, markersize=3.5, alpha=0.7)
    axes.set_yticks(heights, [view.label(case) for case, _ in found], fontsize=8)
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_color(style(number)["color"])  # the curves' legend
    axes.set_ylim(0.4, len(found) + 0.6)
    axes.set_title("box: quartiles, whiskers: 5 % and 95 %", fontsize=8, loc="right")
