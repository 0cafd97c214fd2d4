"""Rounds of a federation in a few lines; devices minimise functions given by their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from learning.aggregation.aggregator import Update
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import (
    Aggregate,
    Algorithm,
    GradientAt,
    LocalContext,
    LocalRun,
    Summary,
)
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.server_step import server_step
from learning.algorithms.training import TrainingPlan, make_optimizer
from learning.codecs.registry import CODECS
from learning.registry import Choice
from learning.vector.parameters import F32, Layout, ParameterSpec
from learning.vector.vectors import Vectors, read_only


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


def one_tensor(size: int) -> Layout:
    return Layout((ParameterSpec("w", (size,)),))


def aggregate_of(delta: F32, **more: F32) -> Aggregate:
    """Returns the aggregate of one update in a federation of one agent."""
    return Aggregate({"delta": delta, **more}, weight=1, count=1, population=1)


@dataclass(eq=False)
class Quadratic:
    """½ Σ curvature (θ - minimum)², a device's loss; [P], or [n, P] for a cohort."""

    curvature: F32
    minimum: F32

    def gradient(self, theta: F32, rows: slice | None = None) -> F32:
        return self.curvature * (theta - self.minimum)

    def loss(self, theta: F32) -> float:
        return float(np.sum(self.curvature * (theta - self.minimum) ** 2)) / 2


def local_context(
    plan: TrainingPlan, theta: F32, shared: Vectors, state: Vectors, loss: Any = None
) -> LocalContext:
    """Everything read-only, so that whoever changes an argument fails."""
    read_only({"theta": theta, **shared})
    read_only(state)
    return LocalContext(
        theta, shared, state, plan, np.random.default_rng(1), loss or (lambda theta: 0.0)
    )


def trained(run: LocalRun, gradient_at: GradientAt, plan: TrainingPlan) -> F32:
    """θ after `plan.max_steps` steps of the plan's optimizer."""
    theta, optimizer = run.start.copy(), make_optimizer(plan)
    for _ in range(plan.max_steps):
        optimizer.step(theta, run.direction(gradient_at, theta))
    return theta


def summary_of(plan: TrainingPlan) -> Summary:
    return Summary(plan.max_steps, plan.max_steps * plan.learning_rate)


@dataclass(eq=False)
class Device:
    """One device: its gradient, its number of rows, and what it remembers."""

    gradient: Callable[..., F32]
    rows: int = 1
    state: Vectors = field(default_factory=dict)


class Federation:
    """A coordinator and its devices, without everything between them but the codec."""

    def __init__(
        self,
        algorithm: Choice,
        plan: TrainingPlan,
        devices: Sequence[Device],
        theta: F32,
        codec: Choice = "float32",
    ) -> None:
        self.algorithm: Algorithm = ALGORITHMS.make(algorithm, plan)
        self.plan, self.devices, self.theta = plan, devices, theta
        self.state = self.algorithm.init(theta)
        self._codec = CODECS.make(codec)
        self._rng = np.random.default_rng(3)

    def round(self, cohort: Iterable[int] | None = None) -> None:
        """One round of the devices with these numbers; None: of all."""
        uploads = self.algorithm.uploads
        sizes = {name: upload.size(self.theta.size) for name, upload in uploads.items()}
        aggregator = AGGREGATORS.make("mean", sizes)
        for index in range(len(self.devices)) if cohort is None else cohort:
            aggregator.add(self._update(index))
        self.theta, self.state = server_step(
            self.algorithm,
            one_tensor(self.theta.size),
            self.theta,
            self.state,
            aggregator.result(population=len(self.devices)),
        )

    def _update(self, index: int) -> Update:
        device, shared = self.devices[index], self.algorithm.shared(self.state)
        run = self.algorithm.local(local_context(self.plan, self.theta, shared, device.state))
        made = run.finish(trained(run, device.gradient, self.plan), summary_of(self.plan))
        decoded = {name: self._travelled(values) for name, values in made.items()}
        device.state = run.commit(decoded)
        weights = {
            name: float(device.rows if upload.weighting == "examples" else 1)
            for name, upload in self.algorithm.uploads.items()
        }
        return Update(f"pi-{index}", decoded, weights)

    def _travelled(self, values: F32) -> F32:
        return self._codec.decode(self._codec.encode(values, 0, self._rng), values.size, 0)
