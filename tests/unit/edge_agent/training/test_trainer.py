"""Local training against numbers by hand and closed forms, with the program that devices run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.training.trainer import Direction, train
from fedge.errors import TrainingError
from learning.aggregation.aggregator import Update
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import GradientAt, LocalContext
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.server_step import server_step
from learning.algorithms.training import Adam, LocalOptimizer, Sgd, TrainingPlan, make_optimizer
from learning.vector.metrics import metric_values
from learning.vector.parameters import F32, F64
from models.runtime.program import Gradient, Program
from models.runtime.rows import Rows
from models.zoo import load_zoo

HOUSING = Path(__file__).parents[4] / "examples" / "data" / "housing_california.npz"
START = np.array([0.5, -0.25, 2.0], np.float32)  # two slopes and a bias


@pytest.fixture(scope="module")
def program() -> Program:
    package = load_zoo("house_price")
    return Program(package.program, package.spec)


@pytest.fixture(scope="module")
def housing() -> tuple[F64, F64]:
    """All rows as the model sees them: features scaled by the spec, prices in 100,000 USD."""
    tensor = load_zoo("house_price").spec.inputs[0]
    with np.load(HOUSING) as file:
        x = (file["x"].astype(np.float64) - tensor.mean) / tensor.std
        return x, file["y"].astype(np.float64) * 1e-5


def part(x: F64, y: F64) -> Rows:
    return {"features": x.astype(np.float32), "target": y.astype(np.float32)}


def some_rows(count: int, seed: int = 0) -> tuple[F64, F64]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 2)), rng.standard_normal(count)


def gradient(theta: F64, x: F64, y: F64) -> F64:
    """Of the mean squared error of a line, in closed form."""
    design = np.c_[x, np.ones(len(x))]
    result: F64 = 2 * design.T @ (design @ theta - y) / len(y)
    return result


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def proximal(mu: float, theta: F32, plan: TrainingPlan) -> Direction:
    """The device half of FedProx that began at θ."""
    context = LocalContext(theta, {}, {}, plan, rng(), lambda _: 0.0)
    return ALGORITHMS.make({"name": "fedprox", "mu": mu}, plan).local(context).direction


def steps(optimizer: LocalOptimizer, gradients: list[list[float]], start: list[float]) -> F32:
    theta = np.array(start, np.float32)
    for vector in gradients:
        optimizer.step(theta, np.array(vector, np.float32))
    return theta


# -- optimizers -------------------------------------------------------------------------------


def test_sgd_steps_along_the_gradient() -> None:
    assert steps(Sgd(0.5, 0.0), [[2, -4], [1, 0]], [1, 1]).tolist() == [-0.5, 3.0]


def test_momentum_remembers_half_of_the_step_before() -> None:
    # v: 1, 1.5, 1.75; θ: 0 - 1, - 1.5, - 1.75
    assert steps(Sgd(1.0, 0.5), [[1], [1], [1]], [0]).tolist() == [-4.25]


def test_the_first_step_of_adam_is_the_learning_rate_whatever_the_gradient() -> None:
    theta = steps(Adam(0.1, 0.9, 0.999, 1e-7), [[1e-3, -50.0, 0.0]], [0, 0, 0])
    assert theta == pytest.approx([-0.1, 0.1, 0.0], rel=1e-2)
    assert theta[1:] == pytest.approx([0.1, 0.0], rel=1e-5)


def test_adam_follows_algorithm_1_of_its_paper() -> None:
    rate, beta_1, beta_2, epsilon = 0.05, 0.8, 0.95, 1e-7
    gradients = np.random.default_rng(0).standard_normal((6, 4))
    theta, first, second = np.zeros(4), np.zeros(4), np.zeros(4)
    for t, g in enumerate(gradients, start=1):
        first = beta_1 * first + (1 - beta_1) * g
        second = beta_2 * second + (1 - beta_2) * g**2
        first_hat, second_hat = first / (1 - beta_1**t), second / (1 - beta_2**t)
        theta -= rate * first_hat / (np.sqrt(second_hat) + epsilon)
    got = steps(Adam(rate, beta_1, beta_2, epsilon), gradients.tolist(), [0] * 4)
    assert got == pytest.approx(theta, abs=1e-5)


def test_the_plan_names_the_optimizer() -> None:
    sgd = make_optimizer(TrainingPlan(learning_rate=0.3, momentum=0.4))
    assert isinstance(sgd, Sgd)
    assert (sgd.learning_rate, sgd.momentum) == (0.3, 0.4)
    plan = TrainingPlan(optimizer="adam", learning_rate=0.3, beta_1=0.5, beta_2=0.6, epsilon=0.7)
    adam = make_optimizer(plan)
    assert isinstance(adam, Adam)
    assert (adam.learning_rate, adam.beta_1, adam.beta_2, adam.epsilon) == (0.3, 0.5, 0.6, 0.7)


# -- training ---------------------------------------------------------------------------------


def test_one_full_batch_step_is_the_gradient_in_closed_form(program: Program) -> None:
    x, y = some_rows(700)
    plan = TrainingPlan(batch_size=0, learning_rate=0.25)
    result = train(program, START, part(x, y), plan, rng())
    assert result.delta == pytest.approx(-0.25 * gradient(START.astype(np.float64), x, y), abs=2e-6)
    assert result.delta.dtype == np.float32
    assert (result.steps, result.num_examples) == (1, 700)
    error = np.c_[x, np.ones(700)] @ START - y
    assert result.sums.weight == 700
    means = metric_values(result.sums, program.spec.metrics)
    assert means["loss"] == pytest.approx((error**2).mean(), rel=1e-5)
    assert means["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert result.seconds > 0


def test_the_weights_it_starts_from_are_not_changed(program: Program) -> None:
    theta = START.copy()
    theta.setflags(write=False)
    x, y = some_rows(40)
    train(program, theta, part(x, y), TrainingPlan(epochs=3), rng())
    assert theta.tolist() == START.tolist()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_epochs_of_full_batches_are_gradient_descent(program: Program, momentum: float) -> None:
    x, y = some_rows(100)
    plan = TrainingPlan(epochs=20, batch_size=100, learning_rate=0.05, momentum=momentum)
    result = train(program, START, part(x, y), plan, rng())
    theta, velocity = START.astype(np.float64), np.zeros(3)
    for _ in range(20):
        velocity = momentum * velocity + gradient(theta, x, y)
        theta -= 0.05 * velocity
    assert result.steps == 20
    assert result.delta == pytest.approx(theta - START, abs=2e-5)


def test_the_proximal_term_pulls_back_to_where_the_round_began(program: Program) -> None:
    x, y = some_rows(100)
    plan = TrainingPlan(epochs=10, batch_size=0, learning_rate=0.05)
    pull = proximal(2.0, START, plan)
    result = train(program, START, part(x, y), plan, rng(), direction=pull)
    start = START.astype(np.float64)
    theta = start.copy()
    for _ in range(10):
        theta -= 0.05 * (gradient(theta, x, y) + 2.0 * (theta - start))
    assert result.delta == pytest.approx(theta - start, abs=1e-5)
    free = train(program, START, part(x, y), TrainingPlan(epochs=10, batch_size=0), rng())
    assert np.linalg.norm(result.delta) < np.linalg.norm(free.delta)


def test_fedprox_ends_at_the_minimum_of_loss_plus_proximal_term(program: Program) -> None:
    x, y = some_rows(200)
    plan = TrainingPlan(epochs=400, batch_size=0, learning_rate=0.1)
    pull = proximal(1.5, START, plan)
    delta = train(program, START, part(x, y), plan, rng(), direction=pull).delta
    # ∇F(θ) + μ (θ - θ₀) = 0 is a linear system.
    design = np.c_[x, np.ones(200)]
    hessian = 2 * design.T @ design / 200
    expected = np.linalg.solve(hessian + 1.5 * np.eye(3), -gradient(START.astype(np.float64), x, y))
    assert delta == pytest.approx(expected, abs=1e-5)


def test_batches_cover_every_row_once_an_epoch_in_a_random_order(program: Program) -> None:
    x, y = some_rows(10)
    plan = TrainingPlan(epochs=2, batch_size=4, learning_rate=0.1)
    result = train(program, START, part(x, y), plan, rng())
    theta, order = START.astype(np.float64), rng()
    losses: list[float] = []
    for _ in range(2):
        shuffled = order.permutation(10)
        losses = []
        for start in (0, 4, 8):
            index = shuffled[start : start + 4]
            losses.append(((np.c_[x[index], np.ones(len(index))] @ theta - y[index]) ** 2).sum())
            theta -= 0.1 * gradient(theta, x[index], y[index])
    assert result.steps == 6  # 4 + 4 + 2 rows, twice
    assert result.delta == pytest.approx(theta - START, abs=1e-5)
    # Figures are of the last epoch, each batch before its step.
    assert result.sums.weight == 10
    assert result.sums.loss == pytest.approx(sum(losses), rel=1e-5)


@pytest.mark.parametrize(("max_steps", "made"), [(0, 6), (1, 1), (4, 4), (6, 6), (99, 6)])
def test_max_steps_ends_training_early(program: Program, max_steps: int, made: int) -> None:
    x, y = some_rows(10)
    plan = TrainingPlan(epochs=2, batch_size=4, max_steps=max_steps)
    assert train(program, START, part(x, y), plan, rng()).steps == made


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(program: Program) -> None:
    x, y = some_rows(64)
    plan = TrainingPlan(batch_size=8)
    results = [
        train(program, START, part(x, y), plan, np.random.default_rng(seed)).delta.tobytes()
        for seed in (1, 1, 2)
    ]
    assert results[0] == results[1] != results[2]


def test_it_asks_before_every_step_whether_to_go_on(program: Program) -> None:
    x, y = some_rows(40)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with pytest.raises(TrainingError, match="cancelled"):
        train(program, START, part(x, y), TrainingPlan(batch_size=4), rng(), cancelled)
    assert asked == 3


def test_without_rows_there_is_nothing_to_learn(program: Program) -> None:
    x, y = some_rows(0)
    with pytest.raises(TrainingError, match="no rows"):
        train(program, START, part(x, y), TrainingPlan(), rng())


def test_a_nan_among_the_rows_ends_training(program: Program) -> None:
    x, y = some_rows(30)
    x[7, 1] = math.nan
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        train(program, START, part(x, y), TrainingPlan(batch_size=0), rng())


@pytest.mark.parametrize("epochs", [30, 60, 100])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_learning_rate_far_too_large_is_named(
    program: Program, epochs: int, momentum: float
) -> None:
    x, y = some_rows(30)
    plan = TrainingPlan(epochs=epochs, batch_size=0, learning_rate=1000, momentum=momentum)
    with pytest.raises(TrainingError, match="learning_rate 1000 may be too large"):
        train(program, START, part(x * 100, y), plan, rng())


def test_a_step_beyond_float32_is_named_too(program: Program) -> None:
    x = np.full((8, 2), 4e17)
    plan = TrainingPlan(batch_size=0, learning_rate=1000)
    theta = np.array([5, 5, 0], np.float32)
    # Error 4e18, loss 1.6e37, gradient 3.2e36, step 3.2e39: float32 ends at 3.4e38.
    with pytest.raises(TrainingError, match="θ is not finite after 1 steps"):
        train(program, theta, part(x, np.zeros(8)), plan, rng())


# -- federated --------------------------------------------------------------------------------


@pytest.mark.parametrize("agents", [1, 2, 10])
def test_full_batch_steps_on_many_agents_averaged_by_rows_are_pooled_gradient_descent(
    program: Program, housing: tuple[F64, F64], agents: int
) -> None:
    x, y = housing
    owner = np.random.default_rng(3).choice(agents, len(y), p=uneven(agents))
    plan = TrainingPlan(batch_size=0, learning_rate=0.3)
    algorithm = ALGORITHMS.make("fedavg", plan)
    layout = program.spec.layout
    theta, pooled = load_zoo("house_price").initial, np.zeros(3)
    assert theta.tolist() == pooled.tolist()
    for _ in range(10):
        mean = AGGREGATORS.make("mean", {"delta": 3})
        for agent in range(agents):
            mine = owner == agent
            result = train(program, theta, part(x[mine], y[mine]), plan, rng())
            weights = {"delta": float(result.num_examples)}
            mean.add(Update(f"agent-{agent}", {"delta": result.delta}, weights))
        aggregate = mean.result(agents)
        theta, _ = server_step(algorithm, layout, theta, algorithm.init(theta), aggregate)
        pooled -= 0.3 * gradient(pooled, x, y)
        assert theta == pytest.approx(pooled, abs=1e-5)
    exact = np.linalg.lstsq(np.c_[x, np.ones(len(y))], y, rcond=None)[0]
    assert np.abs(theta - exact).max() < 0.1  # and it is on its way to the exact solution


def uneven(agents: int) -> F64:
    shares = np.arange(1, agents + 1, dtype=np.float64)
    result: F64 = shares / shares.sum()
    return result


class Tracking:
    """Stands for a program with a moving mean: its gradient says 1, its statistic moves by 0.25."""

    class spec:  # noqa: N801
        tracked = (slice(1, 2),)
        size = 2
        stochastic = False

    def gradient(self, theta: F32, rows: Rows, *, seed: int = 0) -> Gradient:
        return Gradient(np.array([1.0, -0.25], np.float32), 1.0, 1.0, {})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_tracked_part_takes_its_value_and_no_optimizer_moves_it(optimizer: Any) -> None:
    plan = TrainingPlan(
        optimizer=optimizer, epochs=4, batch_size=0, learning_rate=0.5, momentum=0.9
    )
    start = np.array([0.0, 2.0], np.float32)
    pull = proximal(3.0, start, plan)
    rows = {"x": np.zeros(1, np.float32)}
    result = train(Tracking(), start, rows, plan, rng(), direction=pull)  # type: ignore[arg-type]
    assert result.delta[1] == pytest.approx(1.0)  # four times 0.25
    assert result.delta[0] != 0


class Personal:
    """Stands for a program whose second number is personal; both pull equally."""

    class spec:  # noqa: N801
        tracked = ()
        size = 1
        stochastic = False

    def gradient(self, theta: F32, rows: Rows, *, seed: int = 0) -> Gradient:
        return Gradient(theta - np.float32(8), 1.0, 1.0, {})


def test_the_proximal_term_leaves_personal_layers_alone() -> None:
    plan = TrainingPlan(epochs=200, batch_size=0, learning_rate=0.1, momentum=0)
    start, rows = np.zeros(2, np.float32), {"x": np.zeros(1, np.float32)}
    pull = proximal(3.0, start[:1], plan)
    result = train(Personal(), start, rows, plan, rng(), direction=pull)  # type: ignore[arg-type]
    # The minimum of ½(z - 8)² + 3/2·z² is 2; alone that of the first term is 8.
    assert result.delta == pytest.approx([2.0, 8.0], rel=1e-4)


def test_a_batch_of_rows_of_weight_0_is_no_step_and_loses_nothing(program: Program) -> None:
    x, y = some_rows(12)
    weight = np.zeros(12, np.float32)
    weight[:4] = 2.0
    plan = TrainingPlan(batch_size=2, learning_rate=0.01, epochs=2)
    result = train(program, START, {**part(x, y), "weight": weight}, plan, rng())
    assert 2 * 2 <= result.steps < 2 * 6
    assert result.sums.weight == 8.0
    assert result.num_examples == 12
    assert result.delta.any()
    with pytest.raises(TrainingError, match="all of weight 0"):
        train(program, START, {**part(x, y), "weight": np.zeros(12, np.float32)}, plan, rng())


# -- directions -------------------------------------------------------------------------------


def test_a_direction_may_ask_for_gradients_of_some_rows_and_at_another_theta(
    program: Program,
) -> None:
    x, y = some_rows(12)
    elsewhere = START + 1
    plan = TrainingPlan(batch_size=0, learning_rate=0.5)

    def half_here_half_there(gradient_at: GradientAt, theta: F32) -> F32:
        here, there = gradient_at(theta, slice(0, 4)), gradient_at(elsewhere, slice(4, 12))
        return (here + there) / np.float32(2)

    result = train(program, START, part(x, y), plan, rng(), direction=half_here_half_there)
    here = gradient(START.astype(np.float64), x[:4], y[:4])
    there = gradient(elsewhere.astype(np.float64), x[4:], y[4:])
    assert result.delta == pytest.approx(-0.5 * (here + there) / 2, abs=2e-6)
    # The sums are those of the whole batch at the current θ.
    error = np.c_[x, np.ones(12)] @ START - y
    assert result.sums.weight == 12
    assert result.sums.loss == pytest.approx((error**2).sum(), rel=1e-5)


def test_a_gradient_at_the_current_theta_is_computed_once_a_step() -> None:
    calls = 0

    class Counting(Personal):
        def gradient(self, theta: F32, rows: Rows, *, seed: int = 0) -> Gradient:
            nonlocal calls
            calls += 1
            return super().gradient(theta, rows, seed=seed)

    def twice(gradient_at: GradientAt, theta: F32) -> F32:
        return (gradient_at(theta) + gradient_at(theta)) / np.float32(2)

    plan = TrainingPlan(epochs=3, batch_size=0)
    rows = {"x": np.zeros(1, np.float32)}
    train(Counting(), np.zeros(2, np.float32), rows, plan, rng(), direction=twice)  # type: ignore[arg-type]
    assert calls == 3


def test_within_a_step_every_gradient_of_a_stochastic_model_has_the_same_seed() -> None:
    seeds: list[int] = []

    class Dropping(Personal):
        class spec:  # noqa: N801
            tracked = ()
            size = 1
            stochastic = True

        def gradient(self, theta: F32, rows: Rows, *, seed: int = 0) -> Gradient:
            seeds.append(seed)
            return super().gradient(theta, rows, seed=seed)

    def two(gradient_at: GradientAt, theta: F32) -> F32:
        return gradient_at(theta) + gradient_at(theta + 1)

    plan = TrainingPlan(epochs=2, batch_size=0)
    rows = {"x": np.zeros(1, np.float32)}
    train(Dropping(), np.zeros(2, np.float32), rows, plan, rng(), direction=two)  # type: ignore[arg-type]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
