"""Batches of a cohort: which rows each agent of a group learns from in each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fleet.batched.cohort.agent_data import AgentData
from learning.algorithms.training import TrainingPlan
from learning.codecs.many import RngOf
from learning.vector.parameters import F32
from models.runtime.rows import Rows

Index = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one step of a cohort.

    Attributes:
        epoch: counts from 0.
        rows: per column, shape (A, B, *shape).
        weight: float32, shape (A, B): 1 for an agent's own rows, 0 for padding; None: all 1.
    """

    epoch: int
    rows: Rows
    weight: F32 | None


def groups_of_steps(counts: Index, plan: TrainingPlan) -> list[Index]:
    """Returns the agents, by place in `counts`, in groups that make the same number of steps.

    Args:
        counts: training rows of each agent, shape (n,), each at least 1.
        plan: of the training.
    """
    size = plan.batch_size
    steps = -(-counts // size) if size else np.ones_like(counts)
    order = np.argsort(steps, kind="stable")
    cuts = np.flatnonzero(np.diff(steps[order])) + 1
    return np.split(order, cuts) if len(order) else []


def number_of_steps(count: int, plan: TrainingPlan) -> int:
    """Returns the optimizer steps of an agent with so many rows."""
    steps = plan.epochs * (-(-count // plan.batch_size) if plan.batch_size else 1)
    return min(steps, plan.max_steps) if plan.max_steps else steps


def training_batches(
    data: AgentData, agents: Index, plan: TrainingPlan, draws: Shuffles
) -> Iterator[Batch]:
    """Yields the batches of agents that make the same number of steps.

    Each agent's rows come in the order in which its own trainer takes them.

    Args:
        data: of the fleet.
        agents: numbers in it, shape (A,).
        plan: of the training.
        draws: orders of rows.
    """
    starts, counts = data.starts("train")[agents], data.counts("train")[agents]
    most = int(counts.max())
    size = plan.batch_size or most
    orders = _orders(counts, size, plan, draws)
    steps = 0
    for epoch in range(plan.epochs):
        for first in range(0, most, size):
            if plan.max_steps and steps == plan.max_steps:
                return
            last = min(first + size, most)
            places = np.arange(first, last)
            own = places < counts[:, None]
            chosen = orders[epoch][:, first:last] if orders else np.where(own, places, 0)
            rows = data.index[starts[:, None] + chosen]
            batch = {name: array.take(rows, 0) for name, array in data.arrays.items()}
            yield Batch(epoch, batch, None if own.all() else own.astype(np.float32))
            steps += 1


def held_out_rows(data: AgentData, agents: Index, part: str) -> tuple[Rows, F32 | None]:
    """Returns all training or held-out rows of agents, padded, with their weights (see `Batch`)."""
    starts, counts = data.starts(part)[agents], data.counts(part)[agents]
    places = np.arange(int(counts.max()))
    own = places < counts[:, None]
    rows = data.index[starts[:, None] + np.where(own, places, 0)]
    batch = {name: array.take(rows, 0) for name, array in data.arrays.items()}
    return batch, None if own.all() else own.astype(np.float32)


def _orders(counts: Index, size: int, plan: TrainingPlan, draws: Shuffles) -> list[Index]:
    """Returns each epoch's order of the rows, shape (A, most rows), padded with 0; [] where rows
    stay as they are.

    A trainer shuffles unless one batch takes all rows of the agent.
    """
    if not (counts > size).any():
        return []
    epochs = plan.epochs
    if plan.max_steps:
        epochs = min(epochs, -(-plan.max_steps // -(-int(counts.max()) // size)))
    return list(draws.orders(counts, epochs))


class Shuffles(Protocol):
    """Orders of the rows of a cohort."""

    def orders(self, counts: Index, epochs: int) -> NDArray[np.int64]:
        """Returns orders of each agent's rows, shape (epochs, A, most rows), padded with 0."""


class OwnShuffles:
    """Each agent's rows in the order in which its own trainer takes them.

    Args:
        rng_of: generator of an agent by its place.
    """

    def __init__(self, rng_of: RngOf) -> None:
        self._rng_of = rng_of

    def orders(self, counts: Index, epochs: int) -> NDArray[np.int64]:
        """See `Shuffles.orders`."""
        orders = np.zeros((epochs, len(counts), int(counts.max())), np.int64)
        for place, count in enumerate(counts.tolist()):
            rng = self._rng_of(place)
            for epoch in range(epochs):
                orders[epoch, place, :count] = rng.permutation(count)
        return orders


class CommonShuffles:
    """Orders drawn for all agents of a cohort at once.

    Args:
        rng: of the cohort.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def orders(self, counts: Index, epochs: int) -> NDArray[np.int64]:
        """See `Shuffles.orders`."""
        most = int(counts.max())
        keys = self._rng.random((epochs, len(counts), most), dtype=np.float32)
        keys[:, np.arange(most) >= counts[:, None]] = 2.0  # behind all others
        orders = np.argsort(keys, axis=-1)
        orders[:, np.arange(most) >= counts[:, None]] = 0
        return orders
