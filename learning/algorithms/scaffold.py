"""SCAFFOLD: control variates against client drift.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning", ICML,
arXiv 1910.06378, Algorithm 1, option II. Device i keeps c_i, the coordinator c, both 0 at first:

    device:       y ← y - η_l (g(y) - c_i + c)                       K steps from y = x
                  Δc_i = -c + (x - y) / (K η_l);  c_i ← c_i + Δc_i
    coordinator:  x ← x + η_g mean Δy;  c ← c + (n / N) mean Δc_i     n of N devices

Both sides advance by Δc_i as it arrives after the codec, so that c stays the mean of all c_i; what
a codec loses of Δc_i is part of the next one. Only the updates of a round that is abandoned leave a
gap: their devices have a receipt and have advanced, and θ and c have not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedge.errors import ConfigError
from learning.algorithms.algorithm import (
    Aggregate,
    GradientAt,
    LocalContext,
    LocalRun,
    ServerState,
    Summary,
    Upload,
    column,
)
from learning.algorithms.fedavg import FedAvg, Rate
from learning.algorithms.training import TrainingPlan
from learning.registry import Settings
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors


@dataclass(eq=False)
class ScaffoldRun:
    """Local training corrected by the control variates c and c_i."""

    start: F32
    control: F32
    own_control: F32

    def direction(self, gradient_at: GradientAt, theta: F32) -> F32:
        """g - c_i + c."""
        return gradient_at(theta) - self.own_control + self.control

    def finish(self, theta: F32, summary: Summary) -> Vectors:
        """Δy and Δc_i; K η_l is the sum of the rates."""
        delta = theta - self.start
        return {"delta": delta, "control": -self.control - delta / column(summary.rate_sum)}

    def commit(self, decoded: Vectors) -> Vectors:
        """c_i, advanced by what arrives."""
        return {"control": self.own_control + decoded["control"]}


class ScaffoldSettings(Settings, frozen=True, tag="scaffold"):
    """Settings of SCAFFOLD.

    Attributes:
        learning_rate: η_g of the server.
    """

    learning_rate: Rate = 1.0


class Scaffold(FedAvg):
    """SCAFFOLD with η_g = `learning_rate`; local training must be plain SGD."""

    settings_type: ClassVar[type[Settings]] = ScaffoldSettings

    def __init__(self, settings: ScaffoldSettings, training: TrainingPlan) -> None:
        if training.optimizer != "sgd" or training.momentum:
            raise ConfigError(
                "scaffold needs training.optimizer sgd with momentum 0: Δc_i is derived from plain "
                f"steps; got {training.optimizer} with momentum {training.momentum:g}"
            )
        self.learning_rate = settings.learning_rate
        # |Δc_i| <= |c| + |Δy| / (K η_l), and c is a mean of such: 2 / η_l with a single step.
        bound = 2.0 / training.learning_rate
        self.uploads: Mapping[str, Upload] = {
            "delta": Upload(feedback=True),
            "control": Upload(weighting="agents", exact=True, norm_factor=bound),
        }

    def init(self, theta: F32) -> ServerState:
        """`control`: c = 0."""
        return ServerState({"control": np.zeros_like(theta)})

    def without_devices(self, theta: F32, state: ServerState) -> ServerState:
        """c = 0: it is the mean of all c_i, and these are 0 again."""
        del state
        return self.init(theta)

    def shared(self, state: ServerState) -> Vectors:
        """c."""
        return {"control": state.vectors["control"]}

    def local(self, context: LocalContext) -> LocalRun:
        """Training from x with both control variates."""
        own = context.state.get("control")
        control = context.shared["control"]
        if own is None:
            own = np.zeros_like(context.theta)
        return ScaffoldRun(context.theta, control, own)

    def apply(
        self, theta: F32, state: ServerState, aggregate: Aggregate
    ) -> tuple[F32, ServerState]:
        """mean Δy; c + (n / N) mean Δc_i."""
        del theta
        share = np.float32(aggregate.count / (aggregate.population or aggregate.count))
        control = state.vectors["control"] + share * aggregate.vectors["control"]
        return aggregate.vectors["delta"], ServerState({"control": control})
