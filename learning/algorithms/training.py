"""The training plan, and the local optimizers that it names: a few lines of numpy each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from learning.registry import decode_settings
from learning.vector.parameters import F32


class TrainingPlan(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Settings of local training; part of a plan and of the coordinator's config.

    An unknown field is an error: agents must not run settings they do not understand.

    Attributes:
        epochs: passes over the rows.
        max_steps: stop after so many steps; 0 has no limit.
        batch_size: rows a step; 0 takes all rows (FedSGD of McMahan et al. 2017).
        optimizer: "sgd" or "adam" (Kingma & Ba 2015, with its beta and epsilon).
        learning_rate: of the local optimizer.
        momentum: of "sgd" (classical, Polyak 1964).
    """

    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 1
    max_steps: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    batch_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 32
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[float, Meta(gt=0, le=1000)] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    beta_1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-7


def training_plan(given: Mapping[str, Any]) -> TrainingPlan:
    """The training plan in a round's plan.

    Raises:
        ConfigError: a setting is unknown, or a value of the wrong type or out of range.
    """
    return decode_settings(given, TrainingPlan, "training")


class LocalOptimizer(Protocol):
    """Changes θ in place, one step at a time."""

    def step(self, theta: F32, gradient: F32) -> None:
        """Moves `theta` along `gradient`; both [..., P]."""


@dataclass(eq=False)
class Sgd:
    """Gradient descent with classical momentum (Polyak 1964): v ← m·v + g; θ ← θ - η·v."""

    learning_rate: float
    momentum: float
    _velocity: F32 | None = None
    _scratch: F32 | None = None

    def step(self, theta: F32, gradient: F32) -> None:
        """See the class."""
        if self.momentum:
            if self._velocity is None:
                self._velocity = np.zeros_like(theta)
            self._velocity *= np.float32(self.momentum)
            self._velocity += gradient
            gradient = self._velocity
        if self._scratch is None:
            self._scratch = np.empty_like(theta)
        np.multiply(gradient, np.float32(self.learning_rate), out=self._scratch)
        theta -= self._scratch


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
    """Returns the optimizer that the plan names."""
    if plan.optimizer == "adam":
        return Adam(plan.learning_rate, plan.beta_1, plan.beta_2, plan.epsilon)
    return Sgd(plan.learning_rate, plan.momentum)
