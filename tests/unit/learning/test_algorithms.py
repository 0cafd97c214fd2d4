"""Server halves against numbers worked out by hand, and states as they are stored."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError, TrainingError, WireError
from learning.aggregation.aggregator import Update
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Aggregate, ServerState
from learning.algorithms.fedavg import FedAvg, FedAvgSettings
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.server_step import (
    check_state,
    server_step,
    state_from_bytes,
    state_to_bytes,
)
from learning.algorithms.training import TrainingPlan
from learning.registry import Choice
from learning.vector.parameters import F32
from tests.unit.learning.rounds import aggregate_of, one_tensor, vector

every_adaptive = pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])


def run(choice: Choice, theta: F32, deltas: list[F32]) -> tuple[F32, ServerState]:
    algorithm = ALGORITHMS.make(choice, TrainingPlan())
    state, layout = algorithm.init(theta), one_tensor(theta.size)
    for delta in deltas:
        theta, state = server_step(algorithm, layout, theta, state, aggregate_of(delta))
    return theta, state


def test_fedavg_with_rate_1_is_the_plain_average_of_the_models() -> None:
    before = vector(1, 2, 3)
    models, examples = [vector(2, 4, 3), vector(0, 8, 7)], [30, 10]
    mean = AGGREGATORS.make("mean", {"delta": 3})
    for model, count in zip(models, examples, strict=True):
        mean.add(Update("pi-1", {"delta": model - before}, {"delta": count}))
    after, state = run("fedavg", before, [mean.result(2).vectors["delta"]])
    assert np.array_equal(after, vector(1.5, 5, 4))  # (30 a + 10 b) / 40
    assert state.vectors == {}
    assert state.scalars == {}


def test_fedavg_steps_by_its_learning_rate() -> None:
    after, _ = run({"name": "fedavg", "learning_rate": 0.5}, vector(1, 1), [vector(4, -2)])
    assert np.array_equal(after, vector(3, 0))


def test_fedavgm_sums_deltas_with_decay() -> None:
    choice: Choice = {"name": "fedavgm", "learning_rate": 0.5, "momentum": 0.5}
    after, state = run(choice, vector(0), [vector(8), vector(4)])
    # v: 8, then 0.5 * 8 + 4 = 8; θ: 4, then 8
    assert np.array_equal(state.vectors["velocity"], vector(8))
    assert np.array_equal(after, vector(8))


def test_fedavgm_without_momentum_is_fedavg() -> None:
    deltas = [vector(0.3, -7), vector(2, 0.1)]
    plain, _ = run("fedavg", vector(1, 2), deltas)
    heavy, _ = run({"name": "fedavgm", "momentum": 0}, vector(1, 2), deltas)
    assert np.array_equal(plain, heavy)


SETTINGS = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}


def adaptive(name: str) -> Choice:
    return {"name": name, **SETTINGS}


def test_fedadagrad_by_hand() -> None:
    after, state = run(adaptive("fedadagrad"), vector(5), [vector(2), vector(1)])
    # m: 0.2, 0.28   v: 1e-6 + 4, + 1
    assert state.vectors["v"] == pytest.approx(5.000001)
    step_1, step_2 = 0.2 / (sqrt(4.000001) + 0.001), 0.28 / (sqrt(5.000001) + 0.001)
    assert after == pytest.approx(5 + 0.1 * (step_1 + step_2), rel=1e-6)


def test_fedadam_by_hand() -> None:
    after, state = run(adaptive("fedadam"), vector(5), [vector(2), vector(1)])
    # m: 0.1 * 2 = 0.2, 0.9 * 0.2 + 0.1 * 1 = 0.28; no bias correction
    # v: 0.99e-6 + 0.01 * 4 = 0.04000099, 0.99 * 0.04000099 + 0.01 * 1 = 0.0496009801
    assert state.vectors["m"] == pytest.approx(0.28, rel=1e-6)
    assert state.vectors["v"] == pytest.approx(0.0496009801, rel=1e-6)
    step_1, step_2 = 0.2 / (sqrt(0.04000099) + 0.001), 0.28 / (sqrt(0.0496009801) + 0.001)
    assert after == pytest.approx(5 + 0.1 * (step_1 + step_2), rel=1e-6)


def test_fedyogi_by_hand() -> None:
    after, state = run(adaptive("fedyogi"), vector(5), [vector(2), vector(0.1)])
    # Δ² = 4 above v = 1e-6: v = 1e-6 + 0.01 * 4; then Δ² = 0.01 below it: v falls by 0.01 * 0.01
    assert state.vectors["v"] == pytest.approx(0.039901, rel=1e-6)
    step_1, step_2 = 0.2 / (sqrt(0.040001) + 0.001), 0.19 / (sqrt(0.039901) + 0.001)
    assert after == pytest.approx(5 + 0.1 * (step_1 + step_2), rel=1e-6)


@every_adaptive
def test_adaptive_algorithms_start_with_v_at_tau_squared(name: str) -> None:
    state = ALGORITHMS.make(adaptive(name), TrainingPlan()).init(vector(3, 4))
    assert np.array_equal(state.vectors["m"], vector(0, 0))
    assert state.vectors["v"] == pytest.approx(1e-6)


@every_adaptive
def test_adaptive_steps_level_out_the_size_of_deltas(name: str) -> None:
    after, _ = run(adaptive(name), vector(0, 0), [vector(0.1, 10)])
    assert after[1] / after[0] < 1.2  # deltas differ by 100


def test_staleness_discounts_by_its_square_root() -> None:
    algorithm = ALGORITHMS.make("fedavg", TrainingPlan())
    assert [algorithm.discount(s) for s in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])


def test_a_diverged_step_names_the_learning_rate_to_go_below() -> None:
    top = float(np.finfo(np.float32).max)
    with pytest.raises(TrainingError, match=r"θ has NaN or inf .*learning_rate below 1000$"):
        run({"name": "fedavg", "learning_rate": 1e3}, vector(top), [vector(top)])


def test_a_scalar_that_is_not_finite_is_refused_by_name() -> None:
    class Counting(FedAvg):
        def apply(
            self, theta: F32, state: ServerState, aggregate: Aggregate
        ) -> tuple[F32, ServerState]:
            return aggregate.vectors["delta"], ServerState(scalars={"noise": float("nan")})

    algorithm = Counting(FedAvgSettings())
    with pytest.raises(TrainingError, match="noise has NaN or inf after the server's step"):
        server_step(algorithm, one_tensor(1), vector(1), ServerState(), aggregate_of(vector(1)))


# --- state on disk -------------------------------------------------------------------------------

#: Byte-exact: states in stores must stay readable.
GOLDEN_STATE = (
    b'FDG1\x00\x00\x00\x32{"vectors":{"m":2,"v":2},"scalars":{"rounds":3.0}}'
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f\x00\x00\x00\x00"
)


def test_a_state_has_these_bytes_for_ever() -> None:
    state = ServerState({"m": vector(1, -2), "v": vector(0.5, 0)}, {"rounds": 3.0})
    assert state_to_bytes(state) == GOLDEN_STATE
    loaded = state_from_bytes(GOLDEN_STATE)
    assert list(loaded.vectors) == ["m", "v"]
    assert np.array_equal(loaded.vectors["m"], state.vectors["m"])
    assert np.array_equal(loaded.vectors["v"], state.vectors["v"])
    assert not loaded.vectors["m"].flags.writeable
    assert loaded.scalars == {"rounds": 3.0}


def test_an_empty_state_round_trips() -> None:
    loaded = state_from_bytes(state_to_bytes(ServerState()))
    assert (loaded.vectors, loaded.scalars) == ({}, {})


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", GOLDEN_STATE[:-1], GOLDEN_STATE + b"\0", GOLDEN_STATE[:20]],
)
def test_damaged_state_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="server state"):
        state_from_bytes(data)


def test_a_state_that_names_a_vector_twice_is_refused() -> None:
    with pytest.raises(WireError, match="server state"):
        state_from_bytes(GOLDEN_STATE.replace(b'"v":2', b'"m":2'))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ServerState(), "holds nothing, this algorithm needs .*m"),
        (ServerState({"m": vector(1, 2)}), "the algorithm or the model was changed"),
        (ServerState({"m": vector(1), "v": vector(1)}), r"holds \{'m': 1, 'v': 1\}"),
        (
            ServerState({"m": vector(1, 2), "v": vector(1, 2)}, {"rounds": 1}),
            "the algorithm or the model was changed",
        ),
    ],
    ids=["none", "missing", "length", "scalar"],
)
def test_a_stored_state_of_another_model_or_algorithm_is_refused(
    found: ServerState, message: str
) -> None:
    expected = ALGORITHMS.make("fedadam", TrainingPlan()).init(vector(1, 2))
    check_state(expected, expected)
    with pytest.raises(ConfigError, match=message):
        check_state(found, expected)


# --- configuration -------------------------------------------------------------------------------


def test_an_unknown_algorithm_is_named_with_those_that_exist() -> None:
    message = r"unknown algorithm 'adam'; did you mean fedadam\? known: fedavg, fedavgm, "
    with pytest.raises(ConfigError, match=message):
        ALGORITHMS.make("adam", TrainingPlan())


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("fedavg", "learning_rate", 0.0),
        ("fedadam", "learning_rate", float("nan")),
        ("fedadam", "learning_rate", float("inf")),
        ("scaffold", "learning_rate", -1.0),
        ("fedavgm", "momentum", 1.0),
        ("fedadam", "beta_1", -0.1),
        ("fedyogi", "beta_2", 1.5),
        ("fedadam", "tau", 0.0),
        ("fedadam", "tau", 1e-20),
        ("fedadagrad", "tau", float("inf")),
        ("fedprox", "mu", -0.1),
        ("fedprox", "mu", float("nan")),
        ("fedprox", "server", 3),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^algorithm\.{field}: expected .*, got "):
        ALGORITHMS.make({"name": name, field: value}, TrainingPlan())


def test_unknown_settings_are_refused() -> None:
    message = r"^algorithm\.lerning_rate: unknown key; did you mean learning_rate\? "
    with pytest.raises(ConfigError, match=message):
        ALGORITHMS.make({"name": "fedavg", "lerning_rate": 1.0}, TrainingPlan())
