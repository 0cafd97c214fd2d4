"""Fair sums: no agent decides a fleet's figures alone, by many rows or by absurd errors.

What a federation stops by is made of these figures, and they are what devices say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import median

import numpy as np

from learning.aggregation.share_cap import HELD, capped_weight
from learning.vector.metrics import MetricSpec, Sums, Total

#: A loss or an error of so many times the usual one is a fault or a lie: it is named and left out.
_ABSURD = 100.0

#: Agents from which on there is a usual one: of two nobody knows which is wrong.
FEWEST = 3


def without_absurd(
    sums: Mapping[str, Sums], usual_loss: float | None, metrics: Sequence[MetricSpec] = ()
) -> tuple[dict[str, Sums], dict[str, str]]:
    """Returns the sums whose figures can be believed, and the reason by agent for the others.

    Args:
        sums: by agent, each of a weight above 0.
        usual_loss: of the federation before it learned: once a model has learned, the median is so
            small that an honest agent's loss may be many times it; None: not known.
        metrics: of the model; those that have no upper bound are looked at like the loss.
    """
    if len(sums) < FEWEST:
        return dict(sums), {}
    losses = {name: each.loss / each.weight for name, each in sums.items()}
    left_out = _absurd("loss", losses, abs(usual_loss or 0.0))
    for spec in metrics:
        for what, values, always_fine in _unbounded(spec, sums):
            left_out = _absurd(what, values, always_fine) | left_out
    return {name: each for name, each in sums.items() if name not in left_out}, left_out


def _unbounded(
    spec: MetricSpec, sums: Mapping[str, Sums]
) -> Iterator[tuple[str, dict[str, float], float]]:
    """Yields a metric's figures without an upper bound: name, value by agent, what is always fine.

    Those of squares as roots: of an R² the errors, and the targets that they are compared with.
    """
    if spec.kind not in ("mean", "root_mean", "r2"):
        return
    means = {
        name: np.asarray(each.metrics[spec.name], np.float64) / each.weight
        for name, each in sums.items()
    }
    if spec.kind == "mean" and not spec.name.endswith("accuracy"):
        # One of another name may be a share of rows, rare with most agents and not with all.
        always_fine = 0.0 if spec.name.rpartition("_")[2] in ("mae", "mse") else 1.0
        yield spec.name, {name: float(mean) for name, mean in means.items()}, always_fine
    elif spec.kind == "root_mean":
        yield spec.name, {name: sqrt(max(0.0, float(mean))) for name, mean in means.items()}, 0.0
    elif spec.kind == "r2":
        errors = {name: sqrt(abs(mean[0])) for name, mean in means.items()}
        targets = {name: max(abs(mean[1]), sqrt(abs(mean[2]))) for name, mean in means.items()}
        yield f"errors of {spec.name}", errors, 0.0
        yield f"targets of {spec.name}", targets, 0.0


def _absurd(what: str, values: Mapping[str, float], always_fine: float) -> dict[str, str]:
    """Returns the reason by agent whose value is far larger than usual, above or below 0."""
    usual = median(map(abs, values.values()))
    limit = max(_ABSURD * (usual or always_fine), always_fine)
    if not limit:
        return {}
    return {
        name: f"{what} {value:.6g}, more than {_ABSURD:g} times the usual {usual:.6g}"
        for name, value in values.items()
        if abs(value) > limit
    }


def fair_shares(sums: Mapping[str, Sums]) -> dict[str, Sums]:
    """Returns the sums, those of an agent beyond its share of the weight scaled down to it."""
    heaviest = sorted((each.weight for each in sums.values()), reverse=True)
    limit = capped_weight(heaviest[:HELD], sum(heaviest[HELD:]), len(heaviest))
    return {
        name: each if each.weight <= limit else _scaled(each, limit / each.weight)
        for name, each in sums.items()
    }


def _scaled(sums: Sums, factor: float) -> Sums:
    def times(total: Total) -> Total:
        return tuple(factor * x for x in total) if isinstance(total, tuple) else factor * total

    metrics = {name: times(total) for name, total in sums.metrics.items()}
    return Sums(factor * sums.loss, factor * sums.weight, metrics)
