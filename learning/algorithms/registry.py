"""Every strategy by its name in configurations."""

from __future__ import annotations

from collections.abc import Callable

from fedge.errors import ConfigError
from learning.algorithms.adaptive import FedAdagrad, FedAdam, FedYogi
from learning.algorithms.fedavg import FedAvg, FedAvgM
from learning.algorithms.strategy import Strategy, StrategyConfig

#: Name in a configuration -> class.
STRATEGIES: dict[str, Callable[[StrategyConfig], Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def make_strategy(config: StrategyConfig) -> Strategy:
    """The strategy that `config` names.

    Raises:
        ConfigError: no strategy has that name.
    """
    strategy = STRATEGIES.get(config.name)
    if strategy is None:
        known = ", ".join(STRATEGIES)
        raise ConfigError(f"unknown strategy {config.name!r}; known strategies: {known}")
    return strategy(config)
