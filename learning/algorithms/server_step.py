"""Server step: learning rate, tracked statistics and finite check that all algorithms share.

Arithmetic is float32. Each parameter sees a handful of operations a round, whose rounding (1e-7)
is far below what quantizing a delta costs; float64 would double the memory of a step for nothing,
and a state that is stored as it was computed makes a resumed run equal to one that never stopped.
"""

from __future__ import annotations

import numpy as np

from fedge.errors import ConfigError, TrainingError
from learning.algorithms.algorithm import Aggregate, Algorithm, ServerState
from learning.vector.parameters import F32, Layout
from learning.vector.vectors import pack_vectors, read_only, unpack_vectors


def server_step(
    algorithm: Algorithm, layout: Layout, theta: F32, state: ServerState, aggregate: Aggregate
) -> tuple[F32, ServerState]:
    """Returns the next θ and state, read-only; the arguments are left as they are.

    Where the layout says `tracked`, θ moves by the mean delta: a statistic that follows the data is
    the mean of what the agents found, and momentum or an adaptive rate would carry it past every
    agent's value.

    Raises:
        TrainingError: NaN or inf in θ or the state; nothing may be committed.
    """
    rate = np.float32(algorithm.learning_rate)
    with np.errstate(over="ignore", invalid="ignore"):  # named below
        step, after_state = algorithm.apply(theta, state, aggregate)
        after = theta + rate * step
        for place in layout.tracked:
            after[place] = theta[place] + aggregate.vectors["delta"][place]
    scalars = {name: np.array(value) for name, value in after_state.scalars.items()}
    for name, values in {"θ": after, **after_state.vectors, **scalars}.items():
        if not np.isfinite(values).all():
            raise TrainingError(
                f"{name} has NaN or inf after the server's step: training diverged, "
                f"try an algorithm.learning_rate below {algorithm.learning_rate:g}"
            )
    after.setflags(write=False)
    read_only(after_state.vectors)
    return after, after_state


def state_to_bytes(state: ServerState) -> bytes:
    """Returns a server state as one frame."""
    return pack_vectors(state.vectors, state.scalars)


def state_from_bytes(data: bytes) -> ServerState:
    """Returns the state that `state_to_bytes` wrote; its vectors are read-only.

    Raises:
        WireError: not such a frame, or of another length than it says.
    """
    return ServerState(*unpack_vectors(data, "server state"))


def check_state(state: ServerState, expected: ServerState) -> None:
    """Raises ConfigError unless `state` has the names and lengths of `expected`."""
    found, wanted = _shape(state), _shape(expected)
    if found != wanted:
        raise ConfigError(
            f"the stored server state holds {found or 'nothing'}, this algorithm needs "
            f"{wanted or 'nothing'}: the algorithm or the model was changed"
        )


def _shape(state: ServerState) -> dict[str, int]:
    sizes = {name: vector.size for name, vector in state.vectors.items()}
    return sizes | dict.fromkeys(state.scalars, 1)
