"""What every strategy is: (θ, mean delta, state) -> (next θ, next state), without side effects.

Arithmetic is float32. Each parameter sees a handful of operations a round, whose rounding (1e-7)
is far below what quantizing a delta costs; float64 would double the memory of a step for nothing,
and a state that is stored as it was computed makes a resumed run equal to one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec
import numpy as np

from fedge.errors import ConfigError, TrainingError, WireError
from learning.vector import frames
from learning.vector.parameters import F32, Layout

#: A strategy's memory between rounds: float32 vectors of shape (P,) by name; empty for FedAvg.
State = Mapping[str, F32]

#: Below it tau² leaves float32's normal range.
MIN_TAU = 1e-15

#: Nobody means more; beyond float32's range a setting would turn the arithmetic into float64.
MAX_SETTING = 1e6


class StrategyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which strategy and its settings; those a strategy does not use are ignored.

    Attributes:
        name: one of `STRATEGIES`.
        learning_rate: of the server, η in the papers. None takes the strategy's own default:
            1.0 for fedavg and fedavgm, which step along the mean delta; 0.01 for the adaptive
            ones, whose steps have about the size of the learning rate in every parameter.
        momentum: β of fedavgm, 0 to below 1.
        beta_1: decay of the mean delta (adaptive), 0 to below 1; 0 is usual for fedadagrad.
        beta_2: decay of its square (fedadam, fedyogi), 0 to below 1.
        tau: τ, the degree of adaptivity: small adapts more; 1e-3 is Reddi et al.'s default.
    """

    name: str = "fedavg"
    learning_rate: float | None = None
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate is not None and not 0 < rate <= MAX_SETTING:
            raise ValueError(f"learning_rate {rate} is outside above 0 to {MAX_SETTING:g}")
        for name in ("momentum", "beta_1", "beta_2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} {value} is outside 0 to below 1")
        if not MIN_TAU <= self.tau <= MAX_SETTING:
            raise ValueError(f"tau {self.tau} is outside {MIN_TAU:g} to {MAX_SETTING:g}")


class Strategy(Protocol):
    """A server optimizer. Holds settings only; all that changes is in the state."""

    def initial_state(self, size: int) -> State:
        """The state before the first round, for θ of length `size`."""

    def apply(self, theta: F32, delta: F32, state: State) -> tuple[F32, State]:
        """The next θ and state; the arguments are left as they are.

        Args:
            theta: float32, shape (P,).
            delta: the cohort's mean of (after - before), float32, shape (P,).
            state: from `initial_state` or the previous `apply`.

        Raises:
            ConfigError: the state is of another strategy or model.
            TrainingError: the result is not finite; nothing may be committed.
        """


class _StateHeader(msgspec.Struct, frozen=True):
    names: tuple[str, ...]
    size: int
    format: Literal[1] = 1


def state_to_bytes(state: State) -> bytes:
    """One frame: names and length in the header, then the vectors as little-endian float32."""
    size = next((vector.size for vector in state.values()), 0)
    body = b"".join(vector.astype("<f4", copy=False).tobytes() for vector in state.values())
    return frames.pack(_StateHeader(tuple(state), size), body)


def state_from_bytes(data: bytes) -> dict[str, F32]:
    """The state that `state_to_bytes` wrote; its vectors are read-only.

    Raises:
        WireError: not such a frame, or of another length than it says.
    """
    header, body = frames.unpack(data, _StateHeader, "strategy state")
    expected = 4 * header.size * len(header.names)
    if header.size < 0 or body.nbytes != expected or len(set(header.names)) != len(header.names):
        raise WireError(
            f"strategy state: {body.nbytes} bytes for {len(header.names)} vectors of {header.size}"
        )
    values = np.frombuffer(body, "<f4").astype(np.float32)
    values.setflags(write=False)
    return {
        name: values[index * header.size : (index + 1) * header.size]
        for index, name in enumerate(header.names)
    }


def check_state(state: State, names: tuple[str, ...], size: int) -> None:
    """Raises ConfigError unless `state` has exactly these vectors, each of length `size`."""
    found = {name: vector.size for name, vector in state.items()}
    if found != dict.fromkeys(names, size):
        raise ConfigError(
            f"the stored strategy state holds {found or 'nothing'}, this strategy needs "
            f"{dict.fromkeys(names, size)}: the strategy or the model was changed"
        )


def with_tracked(layout: Layout, theta: F32, delta: F32, after: F32) -> F32:
    """`after`, but θ + delta where the layout says `tracked`.

    A statistic that follows the data is the mean of what the agents found, whatever the strategy
    does with gradients: momentum or an adaptive rate would carry it past every agent's value.
    """
    if not layout.tracked:
        return after
    after = after.copy()
    for place in layout.tracked:
        after[place] = theta[place] + delta[place]
    after.setflags(write=False)
    return after


def check_step(theta: F32, state: State, learning_rate: float) -> tuple[F32, State]:
    """θ and state as they came, made read-only.

    Raises:
        TrainingError: NaN or inf in one of them.
    """
    for name, vector in {"θ": theta, **state}.items():
        if not np.isfinite(vector).all():
            raise TrainingError(
                f"{name} has NaN or inf after the strategy's step: training diverged, "
                f"try a learning_rate below {learning_rate:g}"
            )
        vector.setflags(write=False)
    return theta, state
