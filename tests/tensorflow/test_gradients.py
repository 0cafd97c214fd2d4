"""Every layer's exported gradient against Keras's own, by gradient tape, on random rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from models.export.backend import keras
from models.export.exporter import export_model
from models.export.verify import keras_gradient, random_batch, relative_error
from models.program import Program

layers = keras.layers
LIMIT = 1e-5
ROWS = 5


def stack(shape: tuple[int, ...], *middle: Any) -> Any:
    """A classifier of three classes around the layers of interest."""
    end = [layers.Flatten(), layers.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input(shape), *middle, *end])


def dense(*middle: Any) -> Any:
    return stack((6,), layers.Dense(8), *middle)


def series(*middle: Any) -> Any:
    # The first layer's input gradient is not computed: what is tested comes second.
    return stack((21, 4), layers.Conv1D(4, 3), *middle)


def image(*middle: Any) -> Any:
    return stack((12, 13, 3), layers.Conv2D(4, 3), *middle)


def attention() -> Any:
    steps = keras.Input((10, 6))
    seen = layers.MultiHeadAttention(2, 4)(steps, steps)
    joined = layers.Concatenate()([layers.Add()([seen, steps]), steps])
    summary = layers.Flatten()(layers.Multiply()([joined, joined]))
    return keras.Model(steps, layers.Dense(3, activation="softmax")(summary))


def two_inputs() -> Any:
    left, right = keras.Input((4,), name="left"), keras.Input((5,), name="right")
    joined = layers.Concatenate()(
        [layers.Dense(4, activation="relu")(left), layers.Dense(3)(right)]
    )
    return keras.Model([left, right], layers.Dense(3, activation="softmax")(joined))


def nested() -> Any:
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, activation="relu")])
    return dense(inner, inner)  # and used twice


def around(
    frame: Callable[..., Any], layer: Callable[..., Any], *sizes: Any, **options: Any
) -> Any:
    """The model that `frame` makes with one layer in it."""
    return frame(layer(*sizes, **options))


CASES: dict[str, Callable[[], Any]] = {
    "dense": dense,
    "dense on the last axis": lambda: series(layers.Dense(5)),
    "layers.ReLU": lambda: dense(layers.ReLU(max_value=1.0, negative_slope=0.1)),
    "layers.LeakyReLU": lambda: dense(layers.LeakyReLU(0.2)),
    "layers.ELU": lambda: dense(layers.ELU(0.7)),
    "layers.PReLU": lambda: dense(layers.PReLU()),
    "layers.Activation": lambda: dense(layers.Activation("gelu")),
    "layer normalization": lambda: dense(layers.LayerNormalization()),
    "layer normalization of a series": lambda: series(layers.LayerNormalization()),
    "group normalization": lambda: image(layers.GroupNormalization(2)),
    "RMS normalization": lambda: series(layers.RMSNormalization()),
    "conv1d causal and dilated": lambda: series(
        layers.Conv1D(5, 3, padding="causal", dilation_rate=2)
    ),
    "conv1d transposed": lambda: series(layers.Conv1DTranspose(5, 3, strides=2)),
    "conv2d dilated": lambda: image(layers.Conv2D(5, 3, dilation_rate=2, padding="same")),
    "global max 1d": lambda: series(layers.GlobalMaxPooling1D()),
    "global max 2d": lambda: image(layers.GlobalMaxPooling2D()),
    "global average 1d": lambda: series(layers.GlobalAveragePooling1D()),
    "global average 2d": lambda: image(layers.GlobalAveragePooling2D()),
    "padding and cropping": lambda: image(
        layers.ZeroPadding2D(2), layers.Cropping2D(((1, 2), (0, 1))), layers.Conv2D(3, 2)
    ),
    "reshape and permute": lambda: series(
        layers.Permute((2, 1)), layers.Dense(3), layers.Reshape((2, 3, 2))
    ),
    "attention, add, multiply, concatenate": attention,
    "two inputs": two_inputs,
    "nested model, shared": nested,
}
for _name in (
    *("relu", "relu6", "elu", "selu", "gelu", "silu", "tanh", "sigmoid", "softmax", "softplus"),
    *("softsign", "leaky_relu", "exponential", "hard_sigmoid", "hard_silu", "mish", "celu"),
    "log_softmax",
):
    CASES[f"activation {_name}"] = partial(around, dense, layers.Activation, _name)
for _padding in ("valid", "same"):
    for _size, _stride in ((3, 1), (5, 2), (2, 3)):
        _options = {"strides": _stride, "padding": _padding, "activation": "relu"}
        _text = f"{_size}, stride {_stride}, {_padding}"
        CASES[f"conv1d {_text}"] = partial(around, series, layers.Conv1D, 5, _size, **_options)
        CASES[f"conv2d {_text}"] = partial(around, image, layers.Conv2D, 5, (_size, 3), **_options)
    CASES[f"conv2d transposed {_padding}"] = partial(
        around, image, layers.Conv2DTranspose, 4, (3, 4), strides=2, padding=_padding
    )
    for _kind in ("Max", "Average"):
        CASES[f"{_kind} pool 1d {_padding}"] = partial(
            around, series, getattr(layers, f"{_kind}Pooling1D"), 4, padding=_padding
        )
        CASES[f"{_kind} pool 2d {_padding}"] = partial(
            around, image, getattr(layers, f"{_kind}Pooling2D"), (3, 2), padding=_padding
        )


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_keras_own(case: str) -> None:
    keras.utils.set_random_seed(3)
    model = CASES[case]()
    model.compile(loss="sparse_categorical_crossentropy")
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:  # zero biases would hide mistakes
        variable.assign(variable + 0.1 * rng.standard_normal(variable.shape))
    package = export_model(model, name="case", batch_size=ROWS)
    program = Program(package.program, package.spec, runtime="ai-edge-litert")

    inputs, target = random_batch(package.spec, rng)
    got = program.gradient(package.initial, inputs, target)
    loss, gradient = keras_gradient(model, package.spec, inputs, target)
    assert relative_error(got.vector, gradient) <= LIMIT
    assert got.sums.loss / ROWS == pytest.approx(loss, rel=1e-5)

    values = list(inputs.values())
    expected = np.asarray(model(values if len(values) > 1 else values[0]))
    assert program.predict(package.initial, inputs)["prediction"] == pytest.approx(
        expected, abs=1e-5
    )


def test_the_first_of_equal_maxima_gets_the_gradient() -> None:
    """A blank image is one big tie, behind a convolution with a bias too."""
    model = image(layers.MaxPooling2D(2))
    model.compile(loss="sparse_categorical_crossentropy")
    package = export_model(model, name="ties", batch_size=ROWS)
    blank = {"input": np.zeros((ROWS, 12, 13, 3), np.float32)}
    target = np.arange(ROWS, dtype=np.int32) % 3
    got = Program(package.program, package.spec).gradient(package.initial, blank, target)
    _, gradient = keras_gradient(model, package.spec, blank, target)
    assert relative_error(got.vector, gradient) <= LIMIT
