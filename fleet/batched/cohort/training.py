"""Local training of a cohort: as `edge_agent.training.trainer`, all agents in one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.training.trainer import DivergedError, move
from fleet.batched.cohort.batches import Batch
from learning.algorithms.algorithm import LocalRun
from learning.algorithms.training import TrainingPlan, make_optimizer
from learning.vector.metrics import add_arrays
from learning.vector.parameters import F32, F64
from models.runtime.rows import Rows
from models.vectorized.kernel import Gradients, Measured


class Kernel(Protocol):
    """Gradients of a cohort; see `models.vectorized.program.VectorizedProgram`."""

    def gradient(self, theta: F32, rows: Rows, weight: F32 | None = None) -> Gradients:
        """Each agent's gradient, at one θ, [P], or at each one's own, [A, P]."""

    def evaluate(self, theta: F32, rows: Rows, weight: F32 | None = None) -> Measured:
        """Each agent's sums over its rows."""


@dataclass(frozen=True, eq=False)
class CohortTrained:
    """A local training of A agents.

    Attributes:
        theta: float32, [A, P]: where each ended.
        steps: that each made.
        sums: of loss and metrics over the last epoch, each batch measured before its step.
        failures: why, by the place of an agent that has no result.
    """

    theta: F32
    steps: int
    sums: Measured
    failures: dict[int, str]


def train_cohort(
    kernel: Kernel,
    run: LocalRun,
    batches: Iterator[Batch],
    agents: int,
    plan: TrainingPlan,
    tracked: tuple[slice, ...],
) -> CohortTrained:
    """Learns from the batches of A agents, each from where the algorithm begins.

    Args:
        kernel: of the model.
        run: of the algorithm, for the cohort.
        batches: of the agents.
        agents: A.
        plan: steps, rates and the local optimizer.
        tracked: parts of θ that follow the data (`ParameterSpec.tracked`).
    """
    optimizer = make_optimizer(plan)
    start = run.start
    theta = np.array(
        np.broadcast_to(start, (agents, start.shape[-1])), order="C"
    )  # not as broadcast
    # All begin at one θ: the first step's products are one product of the whole cohort.
    step = _Step(kernel, start if start.ndim == 1 else theta)
    sums = _RunningSums()
    failures: dict[int, str] = {}
    steps = 0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
        for batch in batches:
            step.begin(batch)
            wanted = run.direction(step.gradient_at, step.theta)
            found = step.measured()
            _note_losses(found, steps + 1, plan, failures)
            move(optimizer, theta, wanted, found.vector, tracked)
            step.theta = theta
            sums.add(batch.epoch, found)
            steps += 1
    for place in np.flatnonzero(~np.isfinite(theta).all(axis=1)).tolist():
        what = f"θ is not finite after {steps} steps"
        failures.setdefault(place, str(DivergedError(what, plan.learning_rate)))
    return CohortTrained(theta, steps, sums.sums(), failures)


def _note_losses(found: Gradients, step: int, plan: TrainingPlan, failures: dict[int, str]) -> None:
    for place in np.flatnonzero(~np.isfinite(found.loss)).tolist():
        what = f"the loss is {found.loss[place]} at step {step}"
        failures.setdefault(place, str(DivergedError(what, plan.learning_rate)))


class _Step:
    """Gradients of one step's batch, at the current θ and at any other."""

    def __init__(self, kernel: Kernel, theta: F32) -> None:
        self._kernel = kernel
        self.theta = theta
        self._batch: Batch | None = None
        self._found: Gradients | None = None

    def begin(self, batch: Batch) -> None:
        """Takes the next batch."""
        self._batch, self._found = batch, None

    def measured(self) -> Gradients:
        """Returns gradients and sums at the current θ; computed once."""
        assert self._batch is not None, "begun"
        if self._found is None:
            batch = self._batch
            self._found = self._kernel.gradient(self.theta, batch.rows, batch.weight)
        return self._found

    def gradient_at(self, theta: F32, rows: slice | None = None) -> F32:
        """See `learning.algorithms.algorithm.GradientAt`."""
        if theta is self.theta and rows is None:
            return self.measured().vector
        assert self._batch is not None, "begun"
        part, weight = self._batch.rows, self._batch.weight
        if rows is not None:
            part = {name: array[:, rows] for name, array in part.items()}
            weight = None if weight is None else weight[:, rows]
        return self._kernel.gradient(theta, part, weight).vector


class _RunningSums:
    """Sums of the epoch that is under way; forgets the one before."""

    def __init__(self) -> None:
        self._epoch = -1
        self._loss: F64 = np.zeros(0)
        self._weight: F64 = np.zeros(0)
        self._totals: dict[str, NDArray[np.float64]] = {}

    def add(self, epoch: int, step: Gradients) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            self._loss, self._weight = np.zeros_like(step.loss), np.zeros_like(step.weight)
            self._totals = {}
        self._loss = self._loss + step.loss
        self._weight = self._weight + step.weight
        add_arrays(self._totals, step.totals)

    def sums(self) -> Measured:
        return Measured(self._loss, self._weight, self._totals)
