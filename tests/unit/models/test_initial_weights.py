"""Initial weights drawn anew: the distributions of Keras's initializers, tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

from fedge.errors import ModelError
from models.package.initial_weights import draw_weights
from models.package.initializers import draw, fans, is_known
from models.package.layer_names import stable_names
from models.zoo import load_zoo, zoo_names

SHAPE = (120, 80)
DRAWN = 120 * 80


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)),
        ((5,), (5, 5)),
        ((4, 3), (4, 3)),
        ((5, 6, 24), (5 * 6, 5 * 24)),  # Conv1D: width, in, out
        ((3, 3, 16, 24), (9 * 16, 9 * 24)),  # Conv2D
        ((3, 3, 16, 1), (9 * 16, 9)),  # DepthwiseConv2D
    ],
)
def test_fans_are_counted_as_keras_counts_them(
    shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    assert fans(shape) == expected


@pytest.mark.parametrize(
    ("name", "config", "limit"),
    [
        # The limits that keras.io documents: sqrt(6 / (in + out)), sqrt(6 / in), sqrt(3 / in).
        ("GlorotUniform", {}, sqrt(6 / 200)),
        ("HeUniform", {}, sqrt(6 / 120)),
        ("LecunUniform", {}, sqrt(3 / 120)),
        ("RandomUniform", {"minval": -0.2, "maxval": 0.2}, 0.2),
        ("RandomUniform", {}, 0.05),
        (
            "VarianceScaling",
            {"scale": 0.5, "mode": "fan_out", "distribution": "uniform"},
            sqrt(1.5 / 80),
        ),
    ],
)
def test_uniform_initializers_fill_their_range(
    name: str, config: dict[str, Any], limit: float
) -> None:
    values = draw(name, config, SHAPE, rng())
    assert values.dtype == np.float32
    assert values.shape == SHAPE
    assert np.abs(values).max() <= limit * (1 + 1e-6)
    assert values.max() > 0.999 * limit
    assert values.min() < -0.999 * limit
    # The variance of a uniform distribution; its estimate is off by some 1 % with 9,600 numbers.
    assert values.var() == pytest.approx(limit**2 / 3, rel=0.04)
    assert abs(values.mean()) < 4 * limit / sqrt(3 * DRAWN)


@pytest.mark.parametrize(
    ("name", "config", "std", "cut"),
    [
        # keras.io: stddev sqrt(2 / (in + out)), sqrt(2 / in), sqrt(1 / in), after the cut.
        ("GlorotNormal", {}, sqrt(2 / 200), True),
        ("HeNormal", {}, sqrt(2 / 120), True),
        ("LecunNormal", {}, sqrt(1 / 120), True),
        ("VarianceScaling", {"scale": 3.0, "distribution": "untruncated_normal"}, 0.158, False),
        ("RandomNormal", {"stddev": 0.3}, 0.3, False),
        # Of this one stddev is that before the cut.
        ("TruncatedNormal", {"stddev": 0.3}, 0.3 * 0.8796, True),
    ],
)
def test_normal_initializers_have_their_deviation(
    name: str, config: dict[str, Any], std: float, cut: bool
) -> None:
    values = draw(name, config, SHAPE, rng())
    assert values.std() == pytest.approx(std, rel=0.03)
    assert abs(values.mean()) < 4 * std / sqrt(DRAWN)
    assert (np.abs(values).max() <= 2 * std / 0.8796 * (1 + 1e-5)) == cut


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 3, 2, 5)])
def test_orthogonal_rows_or_columns_are_orthonormal(shape: tuple[int, ...]) -> None:
    matrix = draw("Orthogonal", {"gain": 2.0}, shape, rng()).reshape(-1, shape[-1])
    product = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4.0 * np.eye(len(product)), atol=1e-5)


def test_fixed_initializers_draw_nothing() -> None:
    assert not draw("Zeros", {}, (3, 2), rng()).any()
    assert draw("Ones", {}, (3,), rng()).tolist() == [1, 1, 1]
    assert draw("Constant", {"value": 0.5}, (2,), rng()).tolist() == [0.5, 0.5]
    assert draw("Identity", {"gain": 3}, (2, 2), rng()).tolist() == [[3, 0], [0, 3]]
    assert not is_known("MyOwn")


def test_names_lose_the_numbers_that_keras_gives() -> None:
    given = [
        ("dense_7", "Dense"),
        ("dense_8", "Dense"),
        ("forward_gru_2", "GRU"),
        ("word", "Dense"),
    ]
    assert stable_names(given) == ["dense", "dense_1", "forward_gru", "word"]


@pytest.mark.parametrize("name", zoo_names())
def test_every_tensor_of_the_zoo_has_an_initializer(name: str) -> None:
    package = load_zoo(name)
    drawn = draw_weights(package, 5)
    assert drawn.kept == {}
    assert drawn.package.initial.shape == package.initial.shape
    for parameter, place in package.spec.layout.slices():
        before, after = package.initial[place], drawn.package.initial[place]
        if before.any():  # zeros stay zeros
            assert not np.array_equal(before, after), parameter.name
            ratio = after.std() / before.std()
            few = 3 / sqrt(parameter.size)
            assert 1 - few < ratio < 1 + few, parameter.name
        else:
            assert not after.any(), parameter.name


def test_one_seed_gives_one_start_and_another_seed_another_one() -> None:
    package = load_zoo("wearable_activity")
    one, again, other = (draw_weights(package, seed).package for seed in (1, 1, 2))
    assert one.digest == again.digest
    assert one.digest != other.digest != package.digest
    assert other.architecture == package.architecture


def test_a_tensor_is_drawn_alike_whatever_stands_before_it() -> None:
    """Its numbers depend on seed and name: a layer more leaves the others as they were."""
    package = load_zoo("wearable_activity")
    document = json.loads(package.architecture)
    layers = document["keras"]["config"]["layers"]
    (first,) = [each for each in layers if each["config"]["name"] == "movement"]
    first["config"]["kernel_initializer"] = {"class_name": "HeNormal", "config": {}}
    changed = replace(package, architecture=json.dumps(document).encode())
    theta, other = (
        draw_weights(package, 1).package.initial,
        draw_weights(changed, 1).package.initial,
    )
    places = {parameter.name: place for parameter, place in package.spec.layout.slices()}
    assert not np.array_equal(theta[places["movement/kernel"]], other[places["movement/kernel"]])
    assert np.array_equal(theta[places["exercise/kernel"]], other[places["exercise/kernel"]])


def changed(edit: Any) -> Any:
    """The wearable model with its description changed."""
    package = load_zoo("wearable_activity")
    document = json.loads(package.architecture)
    edit(document)
    return replace(package, architecture=json.dumps(document).encode())


def kernel_of(document: Any, name: str, initializer: Any) -> None:
    for layer in document["keras"]["config"]["layers"]:
        if layer["config"]["name"] == name:
            layer["config"]["kernel_initializer"] = initializer


@pytest.mark.parametrize(
    ("initializer", "reason"),
    [
        ({"class_name": "Mine", "config": {}}, "initializer Mine is not one of Keras's"),
        (None, "its layer names no initializer"),
        ({"class_name": "Constant", "config": {"value": [1, 2]}}, "Constant: "),
    ],
)
def test_a_tensor_that_cannot_be_drawn_keeps_its_values_and_says_why(
    initializer: Any, reason: str
) -> None:
    package = changed(lambda document: kernel_of(document, "exercise", initializer))
    drawn = draw_weights(package, 1)
    assert list(drawn.kept) == ["exercise/kernel"]
    assert drawn.kept["exercise/kernel"].startswith(reason)
    places = {parameter.name: place for parameter, place in package.spec.layout.slices()}
    place = places["exercise/kernel"]
    assert np.array_equal(drawn.package.initial[place], package.initial[place])


def test_a_package_without_a_description_keeps_all_its_weights() -> None:
    package = replace(load_zoo("wearable_activity"), architecture=b"")
    drawn = draw_weights(package, 1)
    assert set(drawn.kept.values()) == {"the package has no description of its model"}
    assert drawn.package.digest == package.digest


def test_a_damaged_description_is_an_error() -> None:
    package = replace(load_zoo("wearable_activity"), architecture=b"{")
    with pytest.raises(ModelError, match=r"^architecture.json of 'wearable_activity' is damaged"):
        draw_weights(package, 1)
