"""SCAFFOLD against numbers worked out by hand, and against what its paper says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fedge.errors import ConfigError
from learning.algorithms.algorithm import Summary
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.registry import Choice
from learning.vector.parameters import F64
from tests.unit.learning.rounds import Device, Federation, Quadratic, local_context, vector


def devices_of(losses: Sequence[Quadratic]) -> list[Device]:
    return [Device(loss.gradient) for loss in losses]


def quadratics(count: int, size: int, seed: int = 2) -> list[Quadratic]:
    rng = np.random.default_rng(seed)
    return [
        Quadratic(
            rng.uniform(0.2, 2, size).astype(np.float32), rng.normal(0, 3, size).astype(np.float32)
        )
        for _ in range(count)
    ]


def optimum(losses: Sequence[Quadratic]) -> F64:
    """Returns the minimiser of the mean of the losses."""
    curvature = np.array([loss.curvature for loss in losses], np.float64)
    minimum = np.array([loss.minimum for loss in losses], np.float64)
    found: F64 = (curvature * minimum).sum(axis=0) / curvature.sum(axis=0)
    return found


def mean_control(federation: Federation) -> F64:
    """The mean of all c_i; of devices that never trained it is 0."""
    zeros = np.zeros_like(federation.theta)
    controls = [device.state.get("control", zeros) for device in federation.devices]
    mean: F64 = np.mean(controls, axis=0, dtype=np.float64)
    return mean


# --- by hand --------------------------------------------------------------------------------------


def two_devices(rows: tuple[int, int] = (1, 1), others: int = 0) -> Federation:
    """Losses ½ (y - 4)² and (y + 1)², two steps with rate 0.5 (so K η_l = 1), from x = 0."""
    first, second = Quadratic(vector(1), vector(4)), Quadratic(vector(2), vector(-1))
    devices = [Device(first.gradient, rows[0]), Device(second.gradient, rows[1])]
    devices += [Device(first.gradient) for _ in range(others)]
    return Federation("scaffold", TrainingPlan(max_steps=2, learning_rate=0.5), devices, vector(0))


def controls(federation: Federation) -> list[float]:
    return [float(device.state["control"][0]) for device in federation.devices[:2]]


def test_two_rounds_of_two_devices_by_hand() -> None:
    federation = two_devices()
    federation.round()
    # First:  y = 0, g = -4; y = 2, g = -2; y = 3.    Δy = 3,  Δc = -0 - 3 / 1 = -3, c_1 = -3
    # Second: y = 0, g = 2;  y = -1, g = 0; y = -1.   Δy = -1, Δc = -0 + 1 / 1 = 1,  c_2 = 1
    assert controls(federation) == [-3, 1]
    # x = 0 + (3 - 1) / 2; c = 0 + 2/2 * (-3 + 1) / 2
    assert np.array_equal(federation.theta, vector(1))
    assert np.array_equal(federation.state.vectors["control"], vector(-1))
    federation.round()
    # First:  y - 4 + 3 - 1 = y - 2:  y = 1, d = -1; y = 1.5, d = -0.5; y = 1.75.
    #         Δy = 0.75, Δc = 1 - 0.75 = 0.25, c_1 = -2.75
    # Second: 2 y + 2 - 1 - 1 = 2 y:  y = 1, d = 2;  y = 0,   d = 0;    y = 0.
    #         Δy = -1,   Δc = 1 + 1 = 2,       c_2 = 3
    assert controls(federation) == [-2.75, 3]
    # x = 1 + (0.75 - 1) / 2; c = -1 + (0.25 + 2) / 2
    assert np.array_equal(federation.theta, vector(0.875))
    assert np.array_equal(federation.state.vectors["control"], vector(0.125))


def test_delta_is_weighted_by_examples_and_control_by_agents() -> None:
    federation = two_devices(rows=(3, 1))
    federation.round()
    assert np.array_equal(federation.theta, vector(2))  # (3 * 3 - 1) / 4
    assert np.array_equal(federation.state.vectors["control"], vector(-1))  # (-3 + 1) / 2


def test_control_advances_by_the_share_of_the_population_in_the_cohort() -> None:
    federation = two_devices(others=2)
    federation.round(cohort=[0, 1])
    assert np.array_equal(federation.theta, vector(1))
    assert np.array_equal(federation.state.vectors["control"], vector(-0.5))  # 2/4 * (-3 + 1) / 2


def test_a_device_advances_by_what_arrived_of_its_control() -> None:
    plan = TrainingPlan(max_steps=2, learning_rate=0.5)
    algorithm = ALGORITHMS.make("scaffold", plan)
    shared, state = {"control": vector(-1)}, {"control": vector(-3)}
    run = algorithm.local(local_context(plan, vector(1), shared, state))
    uploads = run.finish(vector(1.75), Summary(2, 1.0))
    assert np.array_equal(uploads["control"], vector(0.25))  # as in the second round above
    arrived = run.commit({"delta": vector(0.75), "control": vector(0.5)})
    assert np.array_equal(arrived["control"], vector(-2.5))
    # What was lost is part of the next Δc_i, so the device adds no residual of its own.
    assert not algorithm.uploads["control"].feedback


def test_the_server_rate_scales_the_step_and_not_the_control() -> None:
    losses = [Quadratic(vector(1), vector(4)), Quadratic(vector(2), vector(-1))]
    plan = TrainingPlan(max_steps=2, learning_rate=0.5)
    half: Choice = {"name": "scaffold", "learning_rate": 0.5}
    federation = Federation(half, plan, devices_of(losses), vector(0))
    federation.round()
    assert np.array_equal(federation.theta, vector(0.5))
    assert np.array_equal(federation.state.vectors["control"], vector(-1))


# --- what the paper says --------------------------------------------------------------------------


def test_one_step_of_all_devices_is_gradient_descent() -> None:
    # c is the mean of all c_i, so the corrections cancel: x ← x - η mean g_i(x).
    losses, rate = quadratics(count=5, size=7), 0.3
    plan = TrainingPlan(max_steps=1, learning_rate=rate)
    federation = Federation("scaffold", plan, devices_of(losses), np.ones(7, np.float32))
    theta = np.ones(7)
    for _ in range(12):
        federation.round()
        theta -= rate * np.mean([loss.curvature * (theta - loss.minimum) for loss in losses], 0)
        np.testing.assert_allclose(federation.theta, theta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("codec", ["float32", "float16", {"name": "int8", "block_size": 4}])
def test_c_stays_the_mean_of_all_c_i_whatever_the_codec_loses(codec: Choice) -> None:
    losses = quadratics(count=6, size=9)
    plan = TrainingPlan(max_steps=3, learning_rate=0.1)
    start = np.zeros(9, np.float32)
    federation = Federation("scaffold", plan, devices_of(losses), start, codec)
    rng, peak = np.random.default_rng(9), 0.0
    for _ in range(40):
        cohort = rng.choice(6, size=int(rng.integers(1, 5)), replace=False).tolist()
        federation.round(cohort)
        np.testing.assert_allclose(
            federation.state.vectors["control"], mean_control(federation), atol=2e-5
        )
        peak = max(peak, float(np.abs(federation.state.vectors["control"]).max()))
    assert peak > 0.5


def distance(algorithm: Choice, codec: Choice = "float32") -> float:
    """From the optimum after 150 rounds of 20 local steps on unlike quadratics."""
    losses = quadratics(count=4, size=5)
    plan = TrainingPlan(max_steps=20, learning_rate=0.05)
    federation = Federation(algorithm, plan, devices_of(losses), np.zeros(5, np.float32), codec)
    for _ in range(150):
        federation.round()
    return float(np.abs(federation.theta - optimum(losses)).max())


def test_many_local_steps_reach_the_optimum_where_fedavg_stops_beside_it() -> None:
    assert distance("scaffold") < 1e-5
    assert distance("fedavg") > 0.1


def test_int8_leaves_the_optimum_where_it_is() -> None:
    assert distance("scaffold", {"name": "int8", "block_size": 5}) < 1e-3


def test_at_the_optimum_nothing_moves() -> None:
    losses = quadratics(count=3, size=4)
    best = optimum(losses).astype(np.float32)
    plan = TrainingPlan(max_steps=10, learning_rate=0.1)
    federation = Federation("scaffold", plan, devices_of(losses), best)
    for device, loss in zip(federation.devices, losses, strict=True):
        device.state = {"control": loss.gradient(best)}
    federation.round()
    np.testing.assert_allclose(federation.theta, best, atol=1e-5)
    for device, loss in zip(federation.devices, losses, strict=True):
        np.testing.assert_allclose(device.state["control"], loss.gradient(best), atol=1e-5)


@pytest.mark.parametrize(
    ("training", "found"),
    [
        (TrainingPlan(optimizer="adam"), "got adam with momentum 0"),
        (TrainingPlan(momentum=0.9), "got sgd with momentum 0.9"),
    ],
    ids=["adam", "momentum"],
)
def test_other_than_plain_local_steps_are_refused(training: TrainingPlan, found: str) -> None:
    with pytest.raises(ConfigError, match=f"scaffold needs .* sgd with momentum 0: .*{found}"):
        ALGORITHMS.make("scaffold", training)
