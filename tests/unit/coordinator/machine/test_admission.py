from __future__ import annotations

import numpy as np
import pytest

from coordinator.machine.admission import MAX_EXAMPLES, check_examples, check_vector
from fedge.errors import UpdateRejected


def refusal(delta: np.ndarray, size: int) -> UpdateRejected:  # type: ignore[type-arg]
    with pytest.raises(UpdateRejected) as caught:
        check_vector("pi-1", delta, size=size)
    assert caught.value.agent_id == "pi-1"
    return caught.value


def test_a_good_delta_passes() -> None:
    check_vector("pi-1", np.array([3, 4], np.float32), size=2)
    check_vector("pi-1", np.zeros(0, np.float32), size=0)


@pytest.mark.parametrize(
    "delta", [np.zeros(3, np.float32), np.zeros((2, 1), np.float32), np.zeros(2, np.float64)]
)
def test_another_shape_or_dtype_is_refused(delta: np.ndarray) -> None:  # type: ignore[type-arg]
    error = refusal(delta, size=2)
    assert error.reason == "shape"
    assert "expected float32 of (2,)" in error.detail


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(value: float) -> None:
    error = refusal(np.array([0, value, 1], np.float32), size=3)
    assert error.reason == "not_finite"
    assert error.detail == "NaN or inf in 1 of 3 values"


@pytest.mark.parametrize("num_examples", [1, 137, MAX_EXAMPLES])
def test_a_sane_number_of_examples_passes(num_examples: int) -> None:
    check_examples("pi-1", num_examples)


@pytest.mark.parametrize("num_examples", [0, -5, MAX_EXAMPLES + 1])
def test_no_examples_or_absurdly_many_are_refused(num_examples: int) -> None:
    with pytest.raises(UpdateRejected) as caught:
        check_examples("pi-1", num_examples)
    assert caught.value.reason == "examples"
    assert caught.value.detail == f"{num_examples} examples, range 1 to 1000000000"
