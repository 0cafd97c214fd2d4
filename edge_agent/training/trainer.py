"""Local training: the loop over batches. The program computes gradients, an algorithm says in
which direction to step, and an optimizer steps; all on flat float32 vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edge_agent.training.result import TrainingResult
from fedge.errors import TrainingError
from learning.algorithms.algorithm import GradientAt
from learning.algorithms.training import LocalOptimizer, TrainingPlan, make_optimizer
from learning.vector.metrics import Sums, add_arrays, as_totals
from learning.vector.parameters import F32, F64
from models.runtime.program import Gradient, Program
from models.runtime.rows import Rows, row_count

#: As `learning.algorithms.algorithm.LocalRun.direction`.
Direction = Callable[[GradientAt, F32], F32]


class DivergedError(TrainingError):
    """Loss or θ is no longer finite.

    Attributes:
        what: is not finite, and where.
    """

    def __init__(self, what: str, learning_rate: float) -> None:
        super().__init__(
            f"{what}: training diverged, learning_rate {learning_rate} may be too large"
        )
        self.what = what


def along_gradient(gradient_at: GradientAt, theta: F32) -> F32:
    """The direction of plain training."""
    return gradient_at(theta)


def train(
    program: Program,
    start: F32,
    rows: Rows,
    plan: TrainingPlan,
    rng: np.random.Generator,
    cancelled: Callable[[], bool] = lambda: False,
    direction: Direction = along_gradient,
) -> TrainingResult:
    """Learns from `rows`, starting at `start` (which is not changed).

    Args:
        program: of the federation's model.
        start: float32, [spec.whole_size]: θ and, where there are some, the personal layers, which
            step along the plain gradient.
        rows: n rows, n >= 1.
        plan: steps, rates and the local optimizer.
        rng: decides the order of rows, and what a stochastic model drops.
        cancelled: asked before every step.
        direction: of the shared part's steps; what is not a statistic follows it.

    Raises:
        TrainingError: no rows, or cancelled.
        DivergedError: the loss or θ is no longer finite.
    """
    started = time.perf_counter()
    count = row_count(rows)
    if count == 0:
        raise TrainingError("no rows to learn from")
    optimizer = make_optimizer(plan)
    theta = start.copy()
    step = _Step(program, theta)
    sums = _RunningSums()
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
            step.begin(batch, int(rng.integers(2**32)) if program.spec.stochastic else 0)
            wanted = direction(step.gradient_at, step.theta)
            found = step.measured()
            if not isfinite(found.loss):
                raise DivergedError(
                    f"the loss is {found.loss} at step {steps + 1}", plan.learning_rate
                )
            move(optimizer, theta, wanted, found.vector, program.spec.tracked)
            sums.add(epoch, found)
            steps += 1
    if not steps:
        raise TrainingError("no rows to learn from: all of weight 0")
    if not np.isfinite(theta).all():
        raise DivergedError(f"θ is not finite after {steps} steps", plan.learning_rate)
    return TrainingResult(start, theta, count, sums.sums(), steps, time.perf_counter() - started)


class _Step:
    """Gradients of one step's batch, at the current θ and at any other.

    Args:
        program: computes them.
        whole: θ and personal layers, which the steps change in place.

    Attributes:
        theta: the shared part of `whole`; an algorithm is given it as the current θ.
    """

    def __init__(self, program: Program, whole: F32) -> None:
        self._program = program
        self._whole = whole
        self._shared = program.spec.size
        self._has_personal = whole.size > self._shared
        self.theta = whole[: self._shared] if self._has_personal else whole
        self._rows: Rows = {}
        self._seed = 0
        self._found: Gradient | None = None

    def begin(self, rows: Rows, seed: int) -> None:
        """Takes the next batch."""
        self._rows, self._seed, self._found = rows, seed, None

    def measured(self) -> Gradient:
        """Returns gradient and sums of the batch at the current θ; computed once."""
        if self._found is None:
            self._found = self._program.gradient(self._whole, self._rows, seed=self._seed)
        return self._found

    def gradient_at(self, theta: F32, rows: slice | None = None) -> F32:
        """See `learning.algorithms.algorithm.GradientAt`."""
        if theta is self.theta and rows is None:
            vector = self.measured().vector
        else:
            batch = self._rows if rows is None else {n: a[rows] for n, a in self._rows.items()}
            whole = theta
            if self._has_personal:
                whole = np.concatenate([theta, self._whole[self._shared :]])
            vector = self._program.gradient(whole, batch, seed=self._seed).vector
        return vector[: self._shared] if self._has_personal else vector


def move(
    optimizer: LocalOptimizer,
    theta: F32,
    wanted: F32,
    found: F32,
    tracked: tuple[slice, ...],
) -> None:
    """One step of the optimizer; tracked parts take the value that the program found for them.

    Args:
        optimizer: steps the others.
        theta: float32, [..., P], changed in place; personal layers are behind the shared part.
        wanted: direction of the shared part.
        found: what the program returned: the gradient, also of personal layers; before - after,
            where a part is tracked.
        tracked: parts that follow the data (`ParameterSpec.tracked`).
    """
    gradient = wanted
    if wanted.shape[-1] < theta.shape[-1]:
        gradient = np.concatenate([wanted, found[..., wanted.shape[-1] :]], axis=-1)
    if tracked:
        gradient = gradient.copy()
        for place in tracked:
            gradient[..., place] = 0
    optimizer.step(theta, gradient)
    for place in tracked:
        theta[..., place] -= found[..., place]


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
