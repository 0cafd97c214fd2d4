"""FedProx against numbers worked out by hand, alone and with a server optimizer."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from fedge.errors import ConfigError
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.registry import Choice
from tests.unit.learning.rounds import Device, Federation, Quadratic, vector

#: Two steps on ½ (θ - 4)² from θ = 0 with rate 0.5.
PLAN = TrainingPlan(max_steps=2, learning_rate=0.5)


def device(minimum: float, rows: int = 1) -> Device:
    return Device(Quadratic(vector(1), vector(minimum)).gradient, rows)


def after(algorithm: Choice, rounds: int = 1, plan: TrainingPlan = PLAN) -> Federation:
    federation = Federation(algorithm, plan, [device(4)], vector(0))
    for _ in range(rounds):
        federation.round()
    return federation


def test_a_round_by_hand() -> None:
    # g + μ (θ - θ₀): -4 + 0 = -4, θ = 2; -2 + 0.5 * 2 = -1, θ = 2.5
    assert np.array_equal(after({"name": "fedprox", "mu": 0.5}).theta, vector(2.5))


def test_the_proximal_term_pulls_to_where_the_round_began() -> None:
    # From θ₀ = 2.5: -1.5, θ = 3.25; -0.75 + 0.5 * 0.75 = -0.375, θ = 3.4375
    assert np.array_equal(after({"name": "fedprox", "mu": 0.5}, rounds=2).theta, vector(3.4375))


def test_without_a_proximal_term_it_is_fedavg() -> None:
    plain = after("fedavg", rounds=3).theta
    assert np.array_equal(after({"name": "fedprox", "mu": 0}, rounds=3).theta, plain)


def test_many_steps_end_at_the_minimum_of_loss_and_proximal_term() -> None:
    # ½ (θ - 4)² + μ/2 θ² has its minimum at 4 / (1 + μ)
    plan = TrainingPlan(max_steps=200, learning_rate=0.1)
    assert after({"name": "fedprox", "mu": 3}, plan=plan).theta == pytest.approx(1, rel=1e-5)


def test_fedadam_on_the_server_steps_along_the_proximal_deltas() -> None:
    server = {
        "name": "fedadam",
        "learning_rate": 0.1,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "tau": 0.001,
    }
    federation = after({"name": "fedprox", "mu": 0.5, "server": server})
    # Δ = 2.5 as above; m = 0.1 * 2.5, v = 0.99e-6 + 0.01 * 6.25
    v = 0.99e-6 + 0.0625
    assert federation.state.vectors["m"] == pytest.approx(0.25)
    assert federation.state.vectors["v"] == pytest.approx(v)
    assert federation.theta == pytest.approx(0.1 * 0.25 / (sqrt(v) + 0.001), rel=1e-6)
    assert federation.algorithm.learning_rate == 0.1


def test_the_servers_name_alone_takes_its_defaults() -> None:
    assert ALGORITHMS.make({"name": "fedprox", "server": "fedavgm"}, PLAN).learning_rate == 1
    assert ALGORITHMS.make({"name": "fedprox", "server": "fedyogi"}, PLAN).learning_rate == 0.01


@pytest.mark.parametrize("server", ["fedprox", "scaffold", "fedsgd"])
def test_only_plain_algorithms_are_server_optimizers(server: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown server optimizer '{server}'"):
        ALGORITHMS.make({"name": "fedprox", "server": server}, PLAN)


def test_settings_of_the_server_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^algorithm\.server\.taw: unknown key"):
        ALGORITHMS.make({"name": "fedprox", "server": {"name": "fedadam", "taw": 1}}, PLAN)
