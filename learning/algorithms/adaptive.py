"""FedAdagrad, FedAdam and FedYogi: a step size for every parameter.

Reddi et al. 2021, "Adaptive federated optimization", arXiv 2003.00295, Algorithm 2:

    m' = β1 m + (1 - β1) Δ
    v' = from v and Δ²: the three differ here only
    θ' = θ + η m' / (√v' + τ)

with m = 0 and v = τ² at the start and, as in the paper, no bias correction.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from learning.algorithms.strategy import State, StrategyConfig, check_state, check_step
from learning.vector.parameters import F32

_LEARNING_RATE = 0.01
_NAMES = ("m", "v")


class _SecondMoment(Protocol):
    def __call__(self, v: F32, square: F32, beta_2: float) -> F32:
        """The next v, given Δ²."""


class _Adaptive:
    """Everything but v'."""

    def __init__(self, config: StrategyConfig, second_moment: _SecondMoment) -> None:
        self._rate = _LEARNING_RATE if config.learning_rate is None else config.learning_rate
        self._beta_1 = config.beta_1
        self._beta_2 = config.beta_2
        self._tau = config.tau
        self._second_moment = second_moment

    def initial_state(self, size: int) -> State:
        """`m`, the running mean of Δ: zeros; `v`, of Δ²: τ²."""
        return {
            "m": np.zeros(size, np.float32),
            "v": np.full(size, self._tau * self._tau, np.float32),
        }

    def apply(self, theta: F32, delta: F32, state: State) -> tuple[F32, State]:
        """See `Strategy.apply`."""
        check_state(state, _NAMES, theta.size)
        with np.errstate(over="ignore", invalid="ignore"):  # check_step names it
            m: F32 = self._beta_1 * state["m"] + (1 - self._beta_1) * delta
            v = self._second_moment(state["v"], delta * delta, self._beta_2)
            after: F32 = theta + self._rate * m / (np.sqrt(v) + self._tau)
        return check_step(after, {"m": m, "v": v}, self._rate)


class FedAdagrad(_Adaptive):
    """v' = v + Δ²: steps shrink for good; suits sparse deltas (embeddings)."""

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(config, _adagrad)


class FedAdam(_Adaptive):
    """v' = β2 v + (1 - β2) Δ²: steps follow the recent size of Δ."""

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(config, _adam)


class FedYogi(_Adaptive):
    """v' = v - (1 - β2) Δ² sign(v - Δ²): as FedAdam, but v falls slowly when Δ becomes small."""

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(config, _yogi)


def _adagrad(v: F32, square: F32, beta_2: float) -> F32:
    del beta_2
    return v + square


def _adam(v: F32, square: F32, beta_2: float) -> F32:
    result: F32 = beta_2 * v + (1 - beta_2) * square
    return result


def _yogi(v: F32, square: F32, beta_2: float) -> F32:
    result: F32 = v - (1 - beta_2) * square * np.sign(v - square)
    return result
