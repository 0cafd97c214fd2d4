"""How a mean update becomes the next θ; one file per family of server optimizers."""

from learning.algorithms.registry import STRATEGIES, make_strategy
from learning.algorithms.strategy import (
    State,
    Strategy,
    StrategyConfig,
    check_state,
    state_from_bytes,
    state_to_bytes,
    with_tracked,
)

__all__ = [
    "STRATEGIES",
    "State",
    "Strategy",
    "StrategyConfig",
    "check_state",
    "make_strategy",
    "state_from_bytes",
    "state_to_bytes",
    "with_tracked",
]
