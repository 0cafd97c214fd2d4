"""θ and its layout."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fedge.errors import ModelError
from learning.vector.parameters import MAX_PARAMETERS, Layout, ParameterSpec

LAYOUT = Layout(
    (ParameterSpec("kernel", (2, 3)), ParameterSpec("bias", (3,)), ParameterSpec("scale", ()))
)


def test_tensors_lie_in_theta_in_order_and_without_gaps() -> None:
    assert LAYOUT.size == 10
    assert [(p.name, place.start, place.stop) for p, place in LAYOUT.slices()] == [
        ("kernel", 0, 6),
        ("bias", 6, 9),
        ("scale", 9, 10),
    ]


def test_flatten_is_row_major_and_unflatten_undoes_it() -> None:
    kernel = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    bias, scale = np.array([7, 8, 9], np.float32), np.array(10, np.float32)
    theta = LAYOUT.flatten([kernel, bias, scale])
    assert theta.dtype == np.float32
    assert np.array_equal(theta, np.arange(1, 11))
    tensors = LAYOUT.unflatten(theta)
    assert np.array_equal(tensors["kernel"], kernel)
    assert np.array_equal(tensors["bias"], bias)
    assert tensors["scale"].shape == ()


def test_unflatten_gives_views() -> None:
    theta = np.zeros(10, np.float32)
    LAYOUT.unflatten(theta)["bias"][:] = 1
    assert theta.sum() == 3


def test_flatten_casts_and_takes_transposed_arrays() -> None:
    layout = Layout((ParameterSpec("kernel", (2, 3)),))
    kernel = np.arange(6, dtype=np.float64).reshape(3, 2).T
    assert np.array_equal(layout.flatten([kernel]), [0, 2, 4, 1, 3, 5])


def test_tensors_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match=r"'bias' has shape \(4,\), the layout says \(3,\)"):
        LAYOUT.flatten([np.zeros((2, 3)), np.zeros(4), np.zeros(())])
    with pytest.raises(ModelError, match="2 tensors for a layout of 3"):
        LAYOUT.flatten([np.zeros((2, 3)), np.zeros(3)])


@pytest.mark.parametrize(
    "theta", [np.zeros(9, np.float32), np.zeros((10, 1), np.float32), np.zeros(10)]
)
def test_a_theta_of_another_shape_or_dtype_is_refused(theta: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ModelError, match=r"expected float32 of \(10,\)"):
        LAYOUT.check(theta)
    with pytest.raises(ModelError):
        LAYOUT.unflatten(theta)


def test_the_fingerprint_tells_layouts_apart() -> None:
    kernel, bias, scale = LAYOUT.parameters
    others = [
        Layout((bias, kernel, scale)),
        Layout((kernel, bias)),
        Layout((ParameterSpec("kernel", (3, 2)), bias, scale)),
        Layout((ParameterSpec("kernel2", (2, 3)), bias, scale)),
    ]
    assert len({layout.fingerprint for layout in (LAYOUT, *others)}) == 5
    assert LAYOUT.fingerprint == Layout(LAYOUT.parameters).fingerprint


def test_the_fingerprint_never_changes() -> None:
    """Updates in flight carry it: another algorithm would refuse every device in the field."""
    assert LAYOUT.fingerprint == "094b2bf542c275b1"
    assert len(LAYOUT.fingerprint) == 16


def test_a_layout_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(LAYOUT), type=Layout) == LAYOUT


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ((), "holds 0 parameters"),
        ((ParameterSpec("a", (2,)), ParameterSpec("a", (3,))), "names a tensor twice"),
        ((ParameterSpec("a", (2, 0)),), "every side must be at least 1"),
        ((ParameterSpec("a", (-2, -3)),), "every side must be at least 1"),
        ((ParameterSpec("a", (MAX_PARAMETERS, 2)),), "limit 1 to"),
    ],
)
def test_impossible_layouts_are_refused(parameters: tuple[ParameterSpec, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Layout(parameters)
