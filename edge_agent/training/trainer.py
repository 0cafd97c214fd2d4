"""Local training on θ: optimizers and federated variants, a few lines of numpy each.

The program computes gradients; everything else happens here, on flat float32 vectors of shape (P,).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broker.protocol.messages import TrainingPlan
from edge_agent.training.result import TrainingResult
from fedge.errors import TrainingError
from learning.vector.metrics import Sums, add_arrays, as_totals
from learning.vector.parameters import F32, F64
from models.runtime.program import Gradient, Program
from models.runtime.rows import Rows, row_count


class LocalOptimizer(Protocol):
    """Changes θ in place, one step at a time."""

    def step(self, theta: F32, gradient: F32) -> None:
        """Move `theta` along `gradient`."""


@dataclass(eq=False)
class Sgd:
    """Gradient descent with classical momentum (Polyak 1964): v ← m·v + g; θ ← θ - η·v."""

    learning_rate: float
    momentum: float
    _velocity: F32 | None = None

    def step(self, theta: F32, gradient: F32) -> None:
        """See the class."""
        if self.momentum:
            if self._velocity is None:
                self._velocity = np.zeros_like(theta)
            self._velocity *= np.float32(self.momentum)
            self._velocity += gradient
            gradient = self._velocity
        theta -= np.float32(self.learning_rate) * gradient


@dataclass(eq=False)
class Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1), its state new in every round."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    _first: F32 | None = None
    _second: F32 | None = None
    _steps: int = 0

    def step(self, theta: F32, gradient: F32) -> None:
        """See the class."""
        if self._first is None or self._second is None:
            self._first, self._second = np.zeros_like(theta), np.zeros_like(theta)
        self._steps += 1
        self._first += np.float32(1 - self.beta_1) * (gradient - self._first)
        self._second += np.float32(1 - self.beta_2) * (gradient * gradient - self._second)
        # Both bias corrections folded into the step size, as in section 2 of the paper.
        rate = self.learning_rate * np.sqrt(1 - self.beta_2**self._steps)
        rate /= 1 - self.beta_1**self._steps
        theta -= np.float32(rate) * self._first / (np.sqrt(self._second) + np.float32(self.epsilon))


def make_optimizer(plan: TrainingPlan) -> LocalOptimizer:
    """The optimizer the plan names."""
    if plan.optimizer == "adam":
        return Adam(plan.learning_rate, plan.beta_1, plan.beta_2, plan.epsilon)
    return Sgd(plan.learning_rate, plan.momentum)


def train(
    program: Program,
    theta: F32,
    rows: Rows,
    plan: TrainingPlan,
    rng: np.random.Generator,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Learn from `rows`, starting at `theta` (which is not changed).

    Args:
        program: of the federation's model.
        theta: float32, shape (spec.whole_size,): θ and, where there is one, the personal part.
        rows: n rows, n >= 1.
        plan: what to do.
        rng: decides the order of rows, and what a stochastic model drops.
        cancelled: asked before every step.

    Raises:
        TrainingError: no rows, cancelled, or the loss or θ is no longer finite.
    """
    started = time.perf_counter()
    count = row_count(rows)
    if count == 0:
        raise TrainingError("no rows to learn from")
    optimizer = make_optimizer(plan)
    tracked, sent = program.spec.tracked, program.spec.size
    local = theta.copy()
    mu = np.float32(plan.proximal_mu)
    epoch_sums = _RunningSums()
    steps = 0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
        for epoch, index in _batches(count, plan, rng):
            if cancelled():
                raise TrainingError("cancelled")
            # Indexing takes eight times as long as `take` for rows of two numbers.
            batch = rows if index is None else {n: a.take(index, 0) for n, a in rows.items()}
            if index is not None and "weight" in batch and not batch["weight"].any():
                continue  # nothing to learn from in this batch
            # Drawn for stochastic models only: the order of rows stays what it is for all others.
            seed = int(rng.integers(2**32)) if program.spec.stochastic else 0
            result = program.gradient(local, batch, seed=seed)
            if not isfinite(result.loss):
                raise TrainingError(
                    f"the loss is {result.loss} at step {steps + 1}: "
                    f"training diverged, learning_rate {plan.learning_rate} may be too large"
                )
            gradient = result.vector
            if mu:
                # Towards the weights that were sent: personal ones, behind them, were not.
                gradient = gradient.copy()
                gradient[:sent] += mu * (local[:sent] - theta[:sent])
            _step(optimizer, local, gradient, result.vector, tracked)
            epoch_sums.add(epoch, result)
            steps += 1
        delta = local - theta
    if not steps:
        raise TrainingError("no rows to learn from: all of weight 0")
    if not np.isfinite(delta).all():
        raise TrainingError(f"θ is not finite after {steps} steps: training diverged")
    return TrainingResult(delta, count, epoch_sums.sums(), steps, time.perf_counter() - started)


def _step(
    optimizer: LocalOptimizer,
    theta: F32,
    gradient: F32,
    found: F32,
    tracked: tuple[slice, ...],
) -> None:
    """One step of the optimizer; tracked parts take the value that the program found for them.

    Args:
        optimizer: steps the others.
        theta: changed in place.
        gradient: of the loss and what is added to it.
        found: what the program returned: before - after, where it is tracked.
        tracked: parts that follow the data (`ParameterSpec.tracked`).
    """
    if tracked:
        gradient = gradient.copy()
        for place in tracked:
            gradient[place] = 0
    optimizer.step(theta, gradient)
    for place in tracked:
        theta[place] -= found[place]


@dataclass
class _RunningSums:
    """Sums of the epoch that is under way; forgets the one before."""

    epoch: int = -1
    loss: float = 0.0
    weight: float = 0.0
    totals: dict[str, F64] = field(default_factory=dict)

    def add(self, epoch: int, step: Gradient) -> None:
        if epoch != self.epoch:
            self.epoch, self.loss, self.weight = epoch, 0.0, 0.0
            self.totals = {}
        self.loss += step.loss
        self.weight += step.weight
        add_arrays(self.totals, step.totals)

    def sums(self) -> Sums:
        return Sums(self.loss, self.weight, as_totals(self.totals))


def _batches(
    rows: int, plan: TrainingPlan, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.intp] | None]]:
    """Epoch and row indexes of each step; None stands for all rows as they are."""
    size = plan.batch_size or rows
    steps = 0
    for epoch in range(plan.epochs):
        order = None if size >= rows else rng.permutation(rows)
        for start in range(0, rows, size):
            if plan.max_steps and steps == plan.max_steps:
                return
            yield epoch, None if order is None else order[start : start + size]
            steps += 1
