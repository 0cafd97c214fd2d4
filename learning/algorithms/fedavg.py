"""FedAvg and FedAvgM: step along the mean delta, or along its running sum."""

from __future__ import annotations

import numpy as np

from learning.algorithms.strategy import State, StrategyConfig, check_state, check_step
from learning.vector.parameters import F32

_LEARNING_RATE = 1.0


class FedAvg:
    """θ' = θ + η Δ; with η = 1 the plain average of the cohort's models.

    McMahan et al. 2017, arXiv 1602.05629, Algorithm 1; the server learning rate η is from Reddi
    et al. 2021, arXiv 2003.00295, Algorithm 1 with SGD on the server.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self._rate = _LEARNING_RATE if config.learning_rate is None else config.learning_rate

    def initial_state(self, size: int) -> State:
        """Nothing is remembered."""
        del size
        return {}

    def apply(self, theta: F32, delta: F32, state: State) -> tuple[F32, State]:
        """See `Strategy.apply`."""
        check_state(state, (), theta.size)
        with np.errstate(over="ignore", invalid="ignore"):  # check_step names it
            after: F32 = theta + self._rate * delta
        return check_step(after, {}, self._rate)


class FedAvgM:
    """v' = β v + Δ, θ' = θ + η v': momentum on the server.

    Hsu et al. 2019, arXiv 1909.06335 (without Nesterov's look-ahead). In the long run a steady Δ
    moves θ by η Δ / (1 - β) a round: lower the learning rate when raising the momentum.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self._rate = _LEARNING_RATE if config.learning_rate is None else config.learning_rate
        self._momentum = config.momentum

    def initial_state(self, size: int) -> State:
        """`velocity`, all zeros."""
        return {"velocity": np.zeros(size, np.float32)}

    def apply(self, theta: F32, delta: F32, state: State) -> tuple[F32, State]:
        """See `Strategy.apply`."""
        check_state(state, ("velocity",), theta.size)
        with np.errstate(over="ignore", invalid="ignore"):  # check_step names it
            velocity: F32 = self._momentum * state["velocity"] + delta
            after: F32 = theta + self._rate * velocity
        return check_step(after, {"velocity": velocity}, self._rate)
