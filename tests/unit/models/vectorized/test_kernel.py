"""Gradients and sums of many agents, compared with the interpreter's for each of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ModelError
from models.inspect.operators import Kind
from models.package.spec import ModelSpec
from models.vectorized import elementwise, plan
from models.vectorized import kernel as kernels
from models.vectorized.axes import Array
from models.vectorized.kernel import (
    UnsupportedError,
    VectorizedProgram,
    check_kernel,
    choose_kernel,
    kernel_reason,
)
from models.zoo import zoo_names
from tests.unit.models.vectorized.samples import kernel_of, package_of, program_of, rows_of

_WITHOUT_LOOPS = [name for name in zoo_names() if name != "next_character"]


@pytest.mark.parametrize("name", _WITHOUT_LOOPS)
def test_every_model_of_the_zoo_agrees_with_its_interpreter(name: str) -> None:
    """One θ and own ones, padding, gradient and evaluate; rows as the program's, fewer and more."""
    package, kernel = package_of(name), kernel_of(name)
    for count in (package.spec.batch_size, 5):
        rows = rows_of(package.spec, 2, count)
        check_kernel(kernel, program_of(name), package.whole(package.initial), rows)


@pytest.mark.parametrize("name", _WITHOUT_LOOPS)
def test_every_model_of_the_zoo_takes_any_number_of_rows_at_once(name: str) -> None:
    assert kernel_of(name).any_rows


@settings(max_examples=25, deadline=None)
@given(
    agents=st.integers(1, 9), count=st.integers(1, 70), shared=st.booleans(), seed=st.integers(0, 9)
)
def test_any_numbers_of_agents_and_rows(agents: int, count: int, shared: bool, seed: int) -> None:
    name = "comment_spam"
    package, kernel, program = package_of(name), kernel_of(name), program_of(name)
    rows = rows_of(package.spec, agents, count, seed)
    rng = np.random.default_rng(seed)
    theta = package.initial
    if not shared:
        theta = (theta + 0.01 * rng.normal(size=(agents, theta.size))).astype(np.float32)
    weight = rng.integers(0, 3, (agents, count)).astype(np.float32)
    weight[:, 0] = 1
    found = kernel.gradient(theta, rows, weight)
    for agent in range(agents):
        own = {name: array[agent] for name, array in rows.items()}
        wanted = program.gradient(
            theta if shared else theta[agent], {**own, "weight": weight[agent]}
        )
        # A row that is right already has almost no gradient: a difference of rounded numbers.
        scale = max(float(np.linalg.norm(wanted.vector)), 1.0)
        assert np.linalg.norm(found.vector[agent] - wanted.vector) <= 1e-5 * scale
        assert found.loss[agent] == pytest.approx(wanted.loss, rel=1e-5, abs=1e-5)
        assert found.weight[agent] == pytest.approx(wanted.weight)
        for metric, totals in wanted.totals.items():
            assert found.totals[metric][agent] == pytest.approx(totals, rel=1e-5, abs=1e-5)


def test_a_linear_models_gradient_is_the_formula() -> None:
    """house_price: 2 · mean of (x·w + b - y) · (x, 1)."""
    kernel = kernel_of("house_price")
    rows = rows_of(kernel.spec, 4, 6)
    theta = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)
    x, y = rows["features"].astype(np.float64), rows["target"].astype(np.float64)
    error = np.einsum("abi,ai->ab", x, theta[:, :2]) + theta[:, 2:] - y
    wanted = np.concatenate(
        [2 * np.einsum("ab,abi->ai", error, x) / 6, 2 * error.mean(1, keepdims=True)], 1
    )
    found = kernel.gradient(theta, rows)
    np.testing.assert_allclose(found.vector, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.loss, np.square(error).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.totals["mae"], np.abs(error).sum(1), rtol=1e-5)


def test_an_agent_without_weight_gets_zeros_and_changes_nobody_else() -> None:
    kernel = kernel_of("handwritten_digit_cnn")
    package = package_of("handwritten_digit_cnn")
    rows = rows_of(kernel.spec, 3, 4)
    weight = np.ones((3, 4), np.float32)
    weight[1] = 0
    for theta in (package.initial, np.tile(package.initial, (3, 1))):
        found = kernel.gradient(theta, rows, weight)
        alone = kernel.gradient(theta, rows)
        assert not found.vector[1].any()
        assert (found.loss[1], found.weight[1], found.totals["accuracy"][1]) == (0, 0, 0)
        for agent in (0, 2):
            np.testing.assert_array_equal(found.vector[agent], alone.vector[agent])
        measured = kernel.evaluate(theta, rows, weight)
        assert (measured.loss[1], measured.weight[1], measured.totals["accuracy"][1]) == (0, 0, 0)
        assert np.isfinite(measured.loss).all()


def test_an_agent_that_diverged_changes_nobody_else() -> None:
    kernel, package = kernel_of("machine_wear"), package_of("machine_wear")
    rows = rows_of(kernel.spec, 3, 4)
    theta = np.tile(package.initial, (3, 1))
    theta[1] = np.nan
    found, sound = kernel.gradient(theta, rows), kernel.gradient(package.initial, rows)
    assert np.isnan(found.vector[1]).any()
    np.testing.assert_allclose(found.vector[[0, 2]], sound.vector[[0, 2]], rtol=1e-4, atol=1e-6)


def test_rows_that_all_agents_share() -> None:
    kernel, package = kernel_of("machine_wear"), package_of("machine_wear")
    rows = {name: array[0] for name, array in rows_of(kernel.spec, 1, 7).items()}
    theta = np.random.default_rng(3).normal(size=(3, 977)).astype(np.float32)
    repeated = {name: np.stack([array] * 3) for name, array in rows.items()}
    one, other = kernel.evaluate(theta, rows), kernel.evaluate(theta, repeated)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
    single = kernel.gradient(package.initial, rows)
    assert single.vector.shape == (1, 977)
    assert single.weight.tolist() == [7]


def test_results_stay_when_the_kernel_is_called_again() -> None:
    kernel, package = kernel_of("machine_wear"), package_of("machine_wear")
    first = kernel.gradient(package.initial, rows_of(kernel.spec, 2, 4))
    kept = first.vector.copy()
    kernel.gradient(package.initial, rows_of(kernel.spec, 2, 4, seed=1))
    np.testing.assert_array_equal(first.vector, kept)


@pytest.mark.parametrize("name", ["heart_disease", "handwritten_digit"])
def test_the_inputs_stay_as_they_are(name: str) -> None:
    """Large arrays are used where they are, small ones copied."""
    kernel, package = kernel_of(name), package_of(name)
    rows = rows_of(kernel.spec, 2, 4)
    copies = {name: array.copy() for name, array in rows.items()}
    theta = np.tile(package.initial, (2, 1))
    kernel.gradient(theta, rows)
    np.testing.assert_array_equal(theta, np.tile(package.initial, (2, 1)))
    for column, array in rows.items():
        np.testing.assert_array_equal(array, copies[column])


def test_arrays_of_any_order_in_memory() -> None:
    kernel, package = kernel_of("handwritten_digit"), package_of("handwritten_digit")
    rows = rows_of(kernel.spec, 2, 4)
    theta = np.tile(package.initial, (2, 1))
    wanted = kernel.gradient(theta, rows).vector
    turned = {column: np.asfortranarray(array) for column, array in rows.items()}
    found = kernel.gradient(np.asfortranarray(theta), turned)
    np.testing.assert_array_equal(found.vector, wanted)
    doubled = {column: np.repeat(array, 2, axis=0)[::2] for column, array in rows.items()}
    np.testing.assert_array_equal(kernel.gradient(theta, doubled).vector, wanted)


@pytest.mark.parametrize("name", ["heart_disease", "handwritten_digit"])
def test_gradients_can_be_written_into_memory_of_the_caller(name: str) -> None:
    kernel, package = kernel_of(name), package_of(name)
    rows = rows_of(kernel.spec, 3, 4)
    weight = np.ones((3, 4), np.float32)
    weight[2] = 0
    out = np.full((3, package.spec.whole_size), np.nan, np.float32)
    found = kernel.gradient(package.initial, rows, weight, out=out)
    assert found.vector is out
    np.testing.assert_array_equal(out, kernel.gradient(package.initial, rows, weight).vector)
    with pytest.raises(ModelError, match="out is float32 of"):
        kernel.gradient(package.initial, rows, out=out[:2])


def test_metrics_can_be_left_out() -> None:
    kernel, package = kernel_of("heart_disease"), package_of("heart_disease")
    rows = rows_of(kernel.spec, 2, 4)
    found = kernel.gradient(package.initial, rows, metrics=False)
    assert found.totals == {}
    np.testing.assert_array_equal(found.vector, kernel.gradient(package.initial, rows).vector)


@pytest.mark.parametrize("count", [3, 16, 33])
def test_rows_are_padded_where_their_axis_is_not_known(count: int) -> None:
    package = package_of("keyword_spotting")
    kernel = VectorizedProgram(package.program, package.spec, any_rows=False)
    assert not kernel.any_rows
    rows = rows_of(package.spec, 2, count)
    check_kernel(kernel, program_of("keyword_spotting"), package.initial, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "needs the array 'target'"),
        ({"window": np.zeros((2, 4, 30, 13), np.float32)}, "'window' has shape"),
        ({"target": np.zeros((2, 5), np.float32)}, "must be the same"),
        ({"target": np.zeros((3, 4), np.float32)}, "must be the same"),
        ({"target": np.zeros((1, 2, 4), np.float32)}, "axes of agents and rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Array | None], message: str) -> None:
    kernel, package = kernel_of("machine_wear"), package_of("machine_wear")
    changed = {**rows_of(kernel.spec, 2, 4), **change}
    rows = {name: array for name, array in changed.items() if array is not None}
    with pytest.raises(ModelError, match=message):
        kernel.gradient(package.initial, rows)


def test_a_theta_of_another_length_is_refused() -> None:
    kernel = kernel_of("machine_wear")
    with pytest.raises(ModelError, match=r"θ is float32 of shape \(976,\)"):
        kernel.gradient(np.zeros(976, np.float32), rows_of(kernel.spec, 2, 4))


def test_an_operator_without_a_numpy_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    operators = {kind: f for kind, f in plan.OPERATORS.items() if kind != Kind.TANH}
    monkeypatch.setattr(plan, "OPERATORS", operators)
    package = package_of("road_traffic")
    with pytest.raises(UnsupportedError, match="TANH runs on an interpreter only"):
        VectorizedProgram(package.program, package.spec)


def test_a_program_with_a_loop_is_refused() -> None:
    package = package_of("next_character")
    with pytest.raises(UnsupportedError, match="WHILE runs on an interpreter only"):
        VectorizedProgram(package.program, package.spec)


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    package = package_of("machine_wear")
    spec = ModelSpec.from_json(
        package.spec.to_json().replace(b'"stochastic": false', b'"stochastic": true')
    )
    assert spec.stochastic
    with pytest.raises(UnsupportedError, match="draws random numbers"):
        VectorizedProgram(package.program, spec)


@pytest.mark.parametrize("name", ["house_price", "road_traffic", "keyword_spotting"])
def test_a_damaged_program_is_an_error_and_no_crash(name: str) -> None:
    """Bytes are changed at random; a program that still loads gives numbers or a ModelError."""
    package = package_of(name)
    rng = np.random.default_rng(7)
    refused = 0
    rows = rows_of(package.spec, 1, 2)
    for _ in range(60):
        data = bytearray(package.program)
        for place in rng.integers(0, len(data), 20):
            data[place] = rng.integers(0, 256)
        try:
            VectorizedProgram(bytes(data), package.spec).gradient(package.initial, rows)
        except ModelError:
            refused += 1
    assert refused > 10


def test_a_kernel_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(elementwise._UNARY, int(Kind.ABS), np.negative)
    package = package_of("house_price")
    wrong = VectorizedProgram(package.program, package.spec)
    rows = rows_of(package.spec, 2, 4)
    with pytest.raises(ModelError, match=r"house_price .*mae differs by .*limit 1e-05"):
        check_kernel(wrong, program_of("house_price"), package.initial, rows)
    monkeypatch.setattr(kernels, "_CHOICES", {})
    assert choose_kernel(package, program_of("house_price"), rows) is None
    assert "differs by" in kernel_reason(package, 4)


def test_the_faster_kernel_is_chosen_once_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_CHOICES", {})
    package, program = package_of("house_price"), program_of("house_price")
    rows = rows_of(package.spec, 2, 16)
    for times, is_kernel in (([2e-3, 64e-6], True), ([2e-6, 64e-3], False)):
        monkeypatch.setattr(kernels, "_CHOICES", {})
        left = list(times)
        monkeypatch.setattr(kernels, "_seconds", lambda _, left=left: left.pop(0))
        found = choose_kernel(package, program, rows)
        assert (found is not None) == is_kernel
        assert choose_kernel(package, program, rows) is found
        assert not left
    assert kernel_reason(package, 16) == f"per-agent {program.runtime}: 1 µs a step against 1 ms"
    assert kernel_reason(package, 17) == ""
