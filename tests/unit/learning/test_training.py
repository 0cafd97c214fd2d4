"""The training plan as it comes from a plan, and the local optimizers by hand."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError
from learning.algorithms.training import TrainingPlan, make_optimizer, training_plan
from learning.vector.parameters import F32


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


def test_what_is_not_given_has_the_default() -> None:
    assert training_plan({}) == TrainingPlan()
    assert training_plan({"epochs": 3, "optimizer": "adam"}) == TrainingPlan(
        epochs=3, optimizer="adam"
    )


def test_an_unknown_key_is_an_error() -> None:
    message = (
        r"^training\.epoch: unknown key; did you mean epochs\? known keys: batch_size, beta_1, "
    )
    with pytest.raises(ConfigError, match=message):
        training_plan({"epoch": 3})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "a whole number >= 1"),
        ({"epochs": 1.5}, "a whole number, got 1.5"),
        ({"epochs": "3"}, "a whole number, got '3'"),
        ({"max_steps": -1}, "a whole number >= 0"),
        ({"batch_size": 1_000_001}, "a whole number <= 1000000"),
        ({"optimizer": "adagrad"}, "one of: sgd, adam, got 'adagrad'"),
        ({"learning_rate": 0}, "a number > 0.0"),
        ({"learning_rate": float("nan")}, "a number > 0.0"),
        ({"learning_rate": 1001}, "a number <= 1000.0"),
        ({"momentum": 1}, "a number < 1.0"),
        ({"epsilon": 0}, "a number > 0.0"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(given: dict[str, Any], message: str) -> None:
    (key,) = given
    with pytest.raises(ConfigError, match=rf"^training\.{key}: expected {message}"):
        training_plan(given)


def stepped(plan: TrainingPlan, theta: F32, gradients: list[F32]) -> F32:
    optimizer, theta = make_optimizer(plan), theta.copy()
    for gradient in gradients:
        gradient.setflags(write=False)
        optimizer.step(theta, gradient)
    assert theta.dtype == np.float32
    return theta


def test_sgd_by_hand() -> None:
    plan = TrainingPlan(learning_rate=0.5)
    assert np.array_equal(stepped(plan, vector(1, 2), [vector(2, -2), vector(0, 4)]), vector(0, 1))


def test_momentum_by_hand() -> None:
    # v: 2, then 0.5 * 2 + 4 = 5; θ: 10 - 0.5 * 2 = 9, then 9 - 0.5 * 5 = 6.5
    plan = TrainingPlan(learning_rate=0.5, momentum=0.5)
    assert np.array_equal(stepped(plan, vector(10), [vector(2), vector(4)]), vector(6.5))


def test_adam_by_hand() -> None:
    # g = 2, 4 with β1 = 0.5, β2 = 0.75: m = 1, 2.5 over 0.5, 0.75; v = 1, 4.75 over 0.25, 0.4375
    plan = TrainingPlan(optimizer="adam", learning_rate=0.1, beta_1=0.5, beta_2=0.75, epsilon=1e-7)
    steps = (1 / 0.5) / sqrt(1 / 0.25) + (2.5 / 0.75) / sqrt(4.75 / 0.4375)
    found = stepped(plan, vector(1), [vector(2), vector(4)])
    assert found == pytest.approx(1 - 0.1 * steps, rel=1e-6)


@pytest.mark.parametrize(
    "plan",
    [TrainingPlan(), TrainingPlan(momentum=0.9), TrainingPlan(optimizer="adam")],
    ids=["sgd", "momentum", "adam"],
)
def test_a_cohort_steps_as_its_devices_do_alone(plan: TrainingPlan) -> None:
    rng = np.random.default_rng(6)
    theta = rng.normal(size=(4, 30)).astype(np.float32)
    gradients = [rng.normal(size=(4, 30)).astype(np.float32) for _ in range(5)]
    together = stepped(plan, theta, gradients)
    for device in range(4):
        alone = stepped(plan, theta[device], [gradient[device] for gradient in gradients])
        assert np.array_equal(together[device], alone)
