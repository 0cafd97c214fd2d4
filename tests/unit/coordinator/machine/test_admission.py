from __future__ import annotations

import numpy as np
import pytest

from coordinator.machine.admission import MAX_EXAMPLES, check_examples, check_vector
from fedge.errors import UpdateRejected


def refusal(delta: np.ndarray, size: int, max_norm: float | None) -> UpdateRejected:  # type: ignore[type-arg]
    with pytest.raises(UpdateRejected) as caught:
        check_vector("pi-1", delta, size=size, max_norm=max_norm)
    assert caught.value.agent_id == "pi-1"
    return caught.value


def test_a_good_delta_passes_with_and_without_a_limit() -> None:
    delta = np.array([3, 4], np.float32)  # norm 5
    check_vector("pi-1", delta, size=2, max_norm=5.0)
    check_vector("pi-1", delta, size=2, max_norm=None)
    check_vector("pi-1", np.zeros(0, np.float32), size=0, max_norm=1.0)


@pytest.mark.parametrize(
    "delta", [np.zeros(3, np.float32), np.zeros((2, 1), np.float32), np.zeros(2, np.float64)]
)
def test_another_shape_or_dtype_is_refused(delta: np.ndarray) -> None:  # type: ignore[type-arg]
    error = refusal(delta, size=2, max_norm=None)
    assert error.reason == "shape"
    assert "expected float32 of (2,)" in error.detail


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_one_value_that_is_not_finite_is_refused(value: float, max_norm: float | None) -> None:
    error = refusal(np.array([0, value, 1], np.float32), size=3, max_norm=max_norm)
    assert error.reason == "not_finite"
    assert error.detail == "NaN or inf in 1 of 3 values"


def test_a_norm_above_the_limit_is_refused_with_value_and_limit() -> None:
    error = refusal(np.array([3, 4], np.float32), size=2, max_norm=4.5)
    assert error.reason == "norm"
    assert error.detail == "L2 norm 5, limit 4.5"
    assert str(error) == "update from pi-1 refused (norm): L2 norm 5, limit 4.5"


def test_a_delta_clipped_to_the_limit_passes() -> None:
    delta = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    delta *= np.float32(1.0) / np.linalg.norm(delta)
    check_vector("pi-1", delta, size=delta.size, max_norm=1.0)
    assert refusal(delta, size=delta.size, max_norm=0.9999).reason == "norm"


def test_squares_beyond_float32_do_not_hide_the_norm() -> None:
    delta = np.full(4, 1e30, np.float32)  # norm 2e30, its square 4e60
    check_vector("pi-1", delta, size=4, max_norm=2.1e30)
    assert refusal(delta, size=4, max_norm=1.9e30).detail == "L2 norm 2e+30, limit 1.9e+30"


@pytest.mark.parametrize("num_examples", [1, 137, MAX_EXAMPLES])
def test_a_sane_number_of_examples_passes(num_examples: int) -> None:
    check_examples("pi-1", num_examples)


@pytest.mark.parametrize("num_examples", [0, -5, MAX_EXAMPLES + 1])
def test_no_examples_or_absurdly_many_are_refused(num_examples: int) -> None:
    with pytest.raises(UpdateRejected) as caught:
        check_examples("pi-1", num_examples)
    assert caught.value.reason == "examples"
    assert caught.value.detail == f"{num_examples} examples, range 1 to 1000000000"
