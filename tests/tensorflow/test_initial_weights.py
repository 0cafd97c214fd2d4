"""Initial weights drawn anew without TensorFlow, beside Keras's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.export.backend import keras
from models.export.exporter import export_model
from models.package.initial_weights import draw_weights
from models.package.initializers import draw

layers = keras.layers
SHAPE = (60, 160)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            (f"{kind}{form}", {})
            for kind in ("Glorot", "He", "Lecun")
            for form in ("Uniform", "Normal")
        ),
        ("VarianceScaling", {"scale": 2.0, "mode": "fan_out"}),
        ("TruncatedNormal", {"mean": 0.1, "stddev": 0.2}),
        ("RandomUniform", {}),
        ("RandomNormal", {}),
        ("Orthogonal", {"gain": 1.5}),
    ],
)
def test_an_initializer_draws_from_the_distribution_that_keras_has(
    name: str, options: dict[str, Any]
) -> None:
    theirs = np.asarray(getattr(keras.initializers, name)(seed=1, **options)(SHAPE))
    config = getattr(keras.initializers, name)(seed=1, **options).get_config()
    ours = draw(name, config, SHAPE, np.random.default_rng(1))
    quantiles = np.linspace(0, 1, 9)
    # 9,600 numbers: a quantile is off by some hundredths of the deviation, the ends by more.
    np.testing.assert_allclose(
        np.quantile(ours, quantiles[1:-1]),
        np.quantile(theirs, quantiles[1:-1]),
        atol=0.08 * float(theirs.std()),
    )
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.03)


def many_layers() -> Any:
    keras.utils.set_random_seed(1)
    words = keras.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(40, 8)(words)
    lstm = layers.LSTM(4, return_sequences=True, kernel_initializer="he_normal")
    x = layers.Bidirectional(lstm)(x)
    x = layers.SeparableConv1D(6, 3, depthwise_initializer="he_uniform")(x)
    x = layers.LayerNormalization()(x)
    x = layers.GRU(5)(x)
    x = keras.Sequential([layers.Dense(7, name="inner"), layers.PReLU()], name="block")(x)
    x = layers.BatchNormalization()(x)
    model = keras.Model(words, layers.Dense(3, activation="softmax")(x))
    model.compile(loss="sparse_categorical_crossentropy")
    return model


def test_every_tensor_of_many_layers_is_drawn_like_a_new_model() -> None:
    package = export_model(many_layers(), name="many", batch_size=4)
    drawn = draw_weights(package, 4)
    assert drawn.kept == {}
    ours = package.spec.layout.unflatten(drawn.package.initial)
    for name, theirs in package.spec.layout.unflatten(package.initial).items():
        if np.ptp(theirs) == 0 or name.endswith("/bias"):  # the LSTM's are ones and zeros
            np.testing.assert_array_equal(ours[name], theirs, err_msg=name)
        else:
            assert not np.array_equal(ours[name], theirs), name
            assert 0.5 < ours[name].std() / theirs.std() < 2, name
            assert np.abs(ours[name]).max() < 2 * np.abs(theirs).max(), name
