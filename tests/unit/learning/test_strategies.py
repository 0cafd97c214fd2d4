"""Server optimizers against numbers worked out by hand."""

from __future__ import annotations

from math import sqrt

import msgspec
import numpy as np
import pytest

from fedge.errors import ConfigError, TrainingError, WireError
from learning.aggregation import WeightedMean
from learning.algorithms import (
    STRATEGIES,
    State,
    StrategyConfig,
    make_strategy,
    state_from_bytes,
    state_to_bytes,
    with_tracked,
)
from learning.vector.parameters import F32, Layout, ParameterSpec

every_strategy = pytest.mark.parametrize("name", STRATEGIES)
every_adaptive = pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


def run(config: StrategyConfig, theta: F32, deltas: list[F32]) -> tuple[F32, State]:
    strategy = make_strategy(config)
    state = strategy.initial_state(theta.size)
    for delta in deltas:
        theta, state = strategy.apply(theta, delta, state)
    return theta, state


def test_fedavg_with_rate_1_is_the_plain_average_of_the_models() -> None:
    before = vector(1, 2, 3)
    models, examples = [vector(2, 4, 3), vector(0, 8, 7)], [30, 10]
    mean = WeightedMean(3)
    for model, count in zip(models, examples, strict=True):
        mean.add(model - before, count)
    after, state = run(StrategyConfig("fedavg"), before, [mean.mean()])
    assert np.array_equal(after, vector(1.5, 5, 4))  # (30 a + 10 b) / 40
    assert state == {}


def test_fedavg_steps_by_its_learning_rate() -> None:
    after, _ = run(StrategyConfig("fedavg", learning_rate=0.5), vector(1, 1), [vector(4, -2)])
    assert np.array_equal(after, vector(3, 0))


def test_fedavgm_sums_deltas_with_decay() -> None:
    config = StrategyConfig("fedavgm", learning_rate=0.5, momentum=0.5)
    after, state = run(config, vector(0), [vector(8), vector(4)])
    # v: 8, then 0.5 * 8 + 4 = 8; θ: 4, then 8
    assert np.array_equal(state["velocity"], vector(8))
    assert np.array_equal(after, vector(8))


def test_fedavgm_without_momentum_is_fedavg() -> None:
    deltas = [vector(0.3, -7), vector(2, 0.1)]
    plain, _ = run(StrategyConfig("fedavg"), vector(1, 2), deltas)
    heavy, _ = run(StrategyConfig("fedavgm", momentum=0), vector(1, 2), deltas)
    assert np.array_equal(plain, heavy)


SETTINGS = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}


def adaptive(name: str) -> StrategyConfig:
    return msgspec.convert({"name": name, **SETTINGS}, StrategyConfig)


def test_fedadagrad_by_hand() -> None:
    after, state = run(adaptive("fedadagrad"), vector(5), [vector(2), vector(1)])
    # m: 0.2, 0.28   v: 1e-6 + 4, + 1
    assert state["v"] == pytest.approx(5.000001)
    step_1, step_2 = 0.2 / (sqrt(4.000001) + 0.001), 0.28 / (sqrt(5.000001) + 0.001)
    assert after == pytest.approx(5 + 0.1 * (step_1 + step_2), rel=1e-6)


def test_fedadam_by_hand() -> None:
    after, state = run(adaptive("fedadam"), vector(5), [vector(2), vector(1)])
    # m: 0.1 * 2 = 0.2, 0.9 * 0.2 + 0.1 * 1 = 0.28; no bias correction
    # v: 0.99e-6 + 0.01 * 4 = 0.04000099, 0.99 * 0.04000099 + 0.01 * 1 = 0.0496009801
    assert state["m"] == pytest.approx(0.28, rel=1e-6)
    assert state["v"] == pytest.approx(0.0496009801, rel=1e-6)
    step_1, step_2 = 0.2 / (sqrt(0.04000099) + 0.001), 0.28 / (sqrt(0.0496009801) + 0.001)
    assert after == pytest.approx(5 + 0.1 * (step_1 + step_2), rel=1e-6)


def test_fedyogi_by_hand() -> None:
    after, state = run(adaptive("fedyogi"), vector(5), [vector(2), vector(0.1)])
    # Δ² = 4 above v = 1e-6: v = 1e-6 + 0.01 * 4; then Δ² = 0.01 below it: v falls by 0.01 * 0.01
    assert state["v"] == pytest.approx(0.039901, rel=1e-6)
    step_1, step_2 = 0.2 / (sqrt(0.040001) + 0.001), 0.19 / (sqrt(0.039901) + 0.001)
    assert after == pytest.approx(5 + 0.1 * (step_1 + step_2), rel=1e-6)


@every_adaptive
def test_adaptive_strategies_start_with_v_at_tau_squared(name: str) -> None:
    state = make_strategy(adaptive(name)).initial_state(2)
    assert np.array_equal(state["m"], vector(0, 0))
    assert state["v"] == pytest.approx(1e-6)


@every_adaptive
def test_adaptive_steps_level_out_the_size_of_deltas(name: str) -> None:
    after, _ = run(adaptive(name), vector(0, 0), [vector(0.1, 10)])
    assert after[1] / after[0] < 1.2  # deltas differ by 100


@every_strategy
def test_a_zero_delta_at_the_start_moves_nothing(name: str) -> None:
    after, _ = run(StrategyConfig(name), vector(1, -2), [vector(0, 0)])
    assert np.array_equal(after, vector(1, -2))


@every_strategy
def test_a_step_leaves_its_arguments_alone_and_returns_read_only_float32(name: str) -> None:
    strategy = make_strategy(StrategyConfig(name))
    theta, delta, state = vector(1, 2), vector(3, 4), strategy.initial_state(2)
    kept = {key: value.copy() for key, value in state.items()}
    after, next_state = strategy.apply(theta, delta, state)
    assert np.array_equal(theta, vector(1, 2))
    assert np.array_equal(delta, vector(3, 4))
    assert all(np.array_equal(state[key], kept[key]) for key in kept)
    for result in (after, *next_state.values()):
        assert result.dtype == np.float32
        assert not result.flags.writeable


@every_strategy
def test_a_resumed_run_equals_one_that_never_stopped(name: str) -> None:
    rng = np.random.default_rng(3)
    deltas = [rng.normal(size=50).astype(np.float32) for _ in range(6)]
    strategy, theta = make_strategy(StrategyConfig(name)), np.zeros(50, np.float32)
    state = strategy.initial_state(50)
    for delta in deltas:
        theta, state = strategy.apply(theta, delta, state_from_bytes(state_to_bytes(state)))
    expected, _ = run(StrategyConfig(name), np.zeros(50, np.float32), deltas)
    assert np.array_equal(theta, expected)


@every_strategy
def test_a_diverged_step_is_refused(name: str) -> None:
    top = float(np.finfo(np.float32).max)
    with pytest.raises(TrainingError, match="NaN or inf after the strategy's step"):
        run(StrategyConfig(name, learning_rate=1e3), vector(top), [vector(top)])


@every_strategy
def test_a_state_of_another_model_or_strategy_is_refused(name: str) -> None:
    strategy = make_strategy(StrategyConfig(name))
    with pytest.raises(ConfigError, match="the strategy or the model was changed"):
        strategy.apply(vector(1), vector(1), {"other": vector(1)})
    if strategy.initial_state(2):
        with pytest.raises(ConfigError, match="the strategy or the model was changed"):
            strategy.apply(vector(1), vector(1), strategy.initial_state(2))


# --- state on disk -------------------------------------------------------------------------------

#: Byte-exact: states in stores must stay readable.
GOLDEN_STATE = (
    b'FDG1\x00\x00\x00\x27{"names":["m","v"],"size":2,"format":1}'
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f\x00\x00\x00\x00"
)


def test_a_state_has_these_bytes_for_ever() -> None:
    state = {"m": vector(1, -2), "v": vector(0.5, 0)}
    assert state_to_bytes(state) == GOLDEN_STATE
    loaded = state_from_bytes(GOLDEN_STATE)
    assert list(loaded) == ["m", "v"]
    assert np.array_equal(loaded["m"], state["m"])
    assert np.array_equal(loaded["v"], state["v"])
    assert not loaded["m"].flags.writeable


def test_an_empty_state_round_trips() -> None:
    assert state_from_bytes(state_to_bytes({})) == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", GOLDEN_STATE[:-1], GOLDEN_STATE + b"\0", GOLDEN_STATE[:20]],
)
def test_damaged_state_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="strategy state"):
        state_from_bytes(data)


def test_a_state_that_names_a_vector_twice_is_refused() -> None:
    with pytest.raises(WireError, match="strategy state"):
        state_from_bytes(GOLDEN_STATE.replace(b'"v"', b'"m"'))


# --- configuration -------------------------------------------------------------------------------


def test_an_unknown_strategy_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'adam'; known strategies: fedavg, "):
        make_strategy(StrategyConfig("adam"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("momentum", 1.0),
        ("beta_1", -0.1),
        ("beta_2", 1.5),
        ("tau", 0.0),
        ("tau", 1e-20),
        ("tau", float("inf")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"{field} {value}"):
        msgspec.convert({"name": "fedadam", field: value}, StrategyConfig)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="lerning_rate"):
        msgspec.convert({"name": "fedavg", "lerning_rate": 1.0}, StrategyConfig)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_tracked_part_is_the_mean_of_the_agents_whatever_the_strategy(name: str) -> None:
    layout = Layout((ParameterSpec("w", (2,)), ParameterSpec("moving_mean", (1,), True)))
    strategy = make_strategy(StrategyConfig(name=name, learning_rate=0.3))
    theta, delta = np.array([1, 2, 3], np.float32), np.array([0.5, -0.5, 4], np.float32)
    after, _ = strategy.apply(theta, delta, strategy.initial_state(3))
    got = with_tracked(layout, theta, delta, after)
    assert got.tolist() == [*after[:2].tolist(), 7.0]
    assert not got.flags.writeable
    plain = Layout((ParameterSpec("w", (3,)),))
    assert with_tracked(plain, theta, delta, after) is after
