"""Fair sums: no agent decides a fleet's figures alone, by many rows or by absurd errors.

What a federation stops by is made of these figures, and they are what devices say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from learning.aggregation.share_cap import HELD, capped_weight
from learning.vector.metrics import MetricSpec, Sums
from learning.vector.parameters import F64
from learning.vector.sums_table import SumsTable

#: A loss or an error of so many times the usual one is a fault or a lie: it is named and left out.
_ABSURD = 100.0

#: Agents from which on there is a usual one: of two nobody knows which is wrong.
FEWEST = 3


def without_absurd(
    sums: SumsTable, usual_loss: float | None, metrics: Sequence[MetricSpec] = ()
) -> tuple[SumsTable, dict[str, str]]:
    """Returns the sums whose figures can be believed, and the reason by agent for the others.

    Args:
        sums: of agents, each of a weight above 0.
        usual_loss: of the federation before it learned: once a model has learned, the median is so
            small that an honest agent's loss may be many times it; None: not known.
        metrics: of the model; those that have no upper bound are looked at like the loss.
    """
    if len(sums) < FEWEST:
        return sums, {}
    left_out = _absurd(sums, "loss", sums.loss / sums.weight, abs(usual_loss or 0.0))
    for spec in metrics:
        for what, values, always_fine in _unbounded(spec, sums):
            left_out = _absurd(sums, what, values, always_fine) | left_out
    if not left_out:
        return sums, {}
    return sums.select(np.array([name not in left_out for name in sums.names])), left_out


def _unbounded(spec: MetricSpec, sums: SumsTable) -> Iterator[tuple[str, F64, float]]:
    """Yields a metric's figures without an upper bound: name, value of each agent, what is fine.

    Those of squares as roots: of an R² the errors, and the targets that they are compared with.
    """
    if spec.kind not in ("mean", "root_mean", "r2"):
        return
    values = sums.metrics[spec.name]
    mean = values / (sums.weight if values.ndim == 1 else sums.weight[:, None])
    if spec.kind == "mean" and not spec.name.endswith("accuracy"):
        # One of another name may be a share of rows, rare with most agents and not with all.
        yield spec.name, mean, 0.0 if spec.name.rpartition("_")[2] in ("mae", "mse") else 1.0
    elif spec.kind == "root_mean":
        yield spec.name, np.sqrt(np.maximum(0.0, mean)), 0.0
    elif spec.kind == "r2":
        yield f"errors of {spec.name}", np.sqrt(np.abs(mean[:, 0])), 0.0
        targets = np.maximum(np.abs(mean[:, 1]), np.sqrt(np.abs(mean[:, 2])))
        yield f"targets of {spec.name}", targets, 0.0


def _absurd(sums: SumsTable, what: str, values: F64, always_fine: float) -> dict[str, str]:
    """Returns the reason by agent whose value is far larger than usual, above or below 0."""
    sizes = np.abs(values)
    usual = float(np.median(sizes))
    limit = max(_ABSURD * (usual or always_fine), always_fine)
    if not limit:
        return {}
    return {
        sums.names[number]: f"{what} {values[number]:.6g}, more than {_ABSURD:g} times the usual "
        f"{usual:.6g}"
        for number in np.flatnonzero(sizes > limit).tolist()
    }


def fair_total(sums: SumsTable) -> Sums:
    """Returns the sum, the sums of an agent beyond its share of the weight scaled down to it."""
    if not len(sums):
        return Sums(0.0, 0.0, {})
    heaviest = np.sort(sums.weight)[::-1]
    limit = capped_weight(heaviest[:HELD].tolist(), float(heaviest[HELD:].sum()), len(sums))
    return sums.total(np.minimum(1.0, limit / sums.weight))
