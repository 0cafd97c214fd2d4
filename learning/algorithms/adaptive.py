"""FedAdagrad, FedAdam and FedYogi: a step size for every parameter, on the server.

Reddi et al. 2021, "Adaptive federated optimization", arXiv 2003.00295, Algorithm 2:

    m' = β1 m + (1 - β1) Δ
    v' = from v and Δ²: the three differ here only
    θ' = θ + η m' / (√v' + τ)

with m = 0 and v = τ² at the start and, as in the paper, no bias correction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from learning.algorithms.algorithm import MAX_SETTING, Aggregate, ServerState
from learning.algorithms.fedavg import Decay, FedAvg, Rate
from learning.algorithms.training import TrainingPlan
from learning.registry import Settings
from learning.vector.parameters import F32

#: Below it tau² leaves float32's normal range.
MIN_TAU = 1e-15


class AdaptiveSettings(Settings, frozen=True):
    """Settings of the adaptive server optimizers.

    Attributes:
        learning_rate: η of the server: a step has about this size in every parameter.
        beta_1: decay of the mean delta; 0 is usual for fedadagrad.
        beta_2: decay of its square; fedadagrad has none.
        tau: τ, the degree of adaptivity: small adapts more; 1e-3 is the paper's default.
    """

    learning_rate: Rate = 0.01
    beta_1: Decay = 0.9
    beta_2: Decay = 0.99
    tau: Annotated[float, Meta(ge=MIN_TAU, le=MAX_SETTING)] = 1e-3


class _Adaptive(FedAvg):
    """Everything but v'."""

    #: (v, Δ², β2) -> v'.
    second_moment: Callable[[F32, F32, float], F32]

    def __init__(self, settings: AdaptiveSettings, training: TrainingPlan | None = None) -> None:
        del training
        self.learning_rate = settings.learning_rate
        self._beta_1, self._beta_2, self._tau = settings.beta_1, settings.beta_2, settings.tau

    def init(self, theta: F32) -> ServerState:
        """`m`, the running mean of Δ: zeros; `v`, of Δ²: τ²."""
        v = np.full_like(theta, self._tau * self._tau)
        return ServerState({"m": np.zeros_like(theta), "v": v})

    def apply(
        self, theta: F32, state: ServerState, aggregate: Aggregate
    ) -> tuple[F32, ServerState]:
        """m' / (√v' + τ)."""
        del theta
        delta = aggregate.vectors["delta"]
        m = self._beta_1 * state.vectors["m"] + (1 - self._beta_1) * delta
        v = self.second_moment(state.vectors["v"], delta * delta, self._beta_2)
        return m / (np.sqrt(v) + self._tau), ServerState({"m": m, "v": v})


class FedAdagradSettings(AdaptiveSettings, frozen=True, tag="fedadagrad"):
    """Settings of FedAdagrad."""


class FedAdagrad(_Adaptive):
    """v' = v + Δ²: steps shrink for good; suits sparse deltas (embeddings)."""

    settings_type: ClassVar[type[Settings]] = FedAdagradSettings

    second_moment = staticmethod(lambda v, square, _: v + square)


class FedAdamSettings(AdaptiveSettings, frozen=True, tag="fedadam"):
    """Settings of FedAdam."""


class FedAdam(_Adaptive):
    """v' = β2 v + (1 - β2) Δ²: steps follow the recent size of Δ."""

    settings_type: ClassVar[type[Settings]] = FedAdamSettings

    second_moment = staticmethod(lambda v, square, beta_2: beta_2 * v + (1 - beta_2) * square)


class FedYogiSettings(AdaptiveSettings, frozen=True, tag="fedyogi"):
    """Settings of FedYogi."""


class FedYogi(_Adaptive):
    """v' = v - (1 - β2) Δ² sign(v - Δ²): as FedAdam, but v falls slowly when Δ becomes small."""

    settings_type: ClassVar[type[Settings]] = FedYogiSettings

    second_moment = staticmethod(
        lambda v, square, beta_2: v - (1 - beta_2) * square * np.sign(v - square)
    )
