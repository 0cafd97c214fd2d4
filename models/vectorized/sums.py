"""Results for many agents, and their sums over several calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learning.vector.parameters import F32, F64
from models.package.spec import ModelSpec
from models.vectorized.axes import Array


@dataclass(frozen=True, eq=False)
class Measured:
    """Sums of loss and metrics over the rows of each agent.

    Attributes:
        loss: Σ weight · loss; float64, shape (A,).
        weight: Σ weight; float64, shape (A,).
        totals: sums of each metric, float64, shape (A, *metric.shape).
    """

    loss: F64
    weight: F64
    totals: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Gradients(Measured):
    """Gradients of the weighted mean loss of each agent, with the sums over its rows.

    Attributes:
        vector: float32, shape (A, spec.whole_size); zeros for an agent whose weights sum to 0.
    """

    vector: F32


class AgentSums:
    """Sums of the calls for each agent, in float64.

    Args:
        spec: the model's spec.
        agents: number of agents.
        weight: shape (A, B) or (B,); None: every row weighs 1.
        metrics: whether totals are wanted.
    """

    def __init__(self, spec: ModelSpec, agents: int, weight: F32 | None, *, metrics: bool) -> None:
        self._agents = agents
        self._given = weight
        self.loss = np.zeros(agents)
        self.weight = np.zeros(agents)
        used = spec.metrics if metrics else ()
        self.totals = {metric.name: np.zeros((agents, *metric.shape)) for metric in used}
        self._converted = {metric.name: metric.sums_of_call for metric in used}

    def weights(self, start: int, rows: int) -> F64:
        """Returns the sum of the weights of these rows, for each agent."""
        if self._given is None:
            return np.full(self._agents, float(rows))
        own = self._given[..., start : start + rows].sum(-1, dtype=np.float64)
        return np.broadcast_to(own, self._agents).copy()

    def add(self, chosen: slice, weight: F64, found: Mapping[str, Array], loss: Array) -> None:
        """Adds what a call found for some agents; nothing for those of weight 0."""
        some = weight > 0
        whole = bool(some.all())
        self.weight[chosen] += weight
        self.loss[chosen] += loss if whole else np.where(some, loss, 0)
        for name, totals in self.totals.items():
            values = found[name]
            if (sums_of_call := self._converted[name]) is not None:
                pairs = zip(values, weight, strict=True)
                values = np.array([sums_of_call(value, float(own)) for value, own in pairs])
            if not whole:
                values = np.where(some.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
            totals[chosen] += values


def weighted(gradient: Array, weight: F64) -> Array:
    """Returns each agent's gradient times its weight; zeros for those of weight 0."""
    factors = weight.astype(np.float32)[:, None]
    return gradient * factors if weight.all() else np.where(factors > 0, gradient * factors, 0)
