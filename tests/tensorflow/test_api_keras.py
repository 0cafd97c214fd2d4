"""The Python API with Keras models: in, trained, and out again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fedge
from fedge.errors import ExportError
from models.export.backend import keras
from tests.notebooks import execute

RNG = np.random.default_rng(3)
X = RNG.normal(size=(240, 4)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.5, 0.0] > 0).astype(np.int64)


def dense(name: str = "sensors model") -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,), name="sensors"),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ],
        name=name.replace(" ", "_"),
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_a_keras_model_goes_in_and_the_trained_one_comes_out() -> None:
    model = dense()
    before = [np.array(weights) for weights in model.get_weights()]
    clients = fedge.partition(X[:200], Y[:200], clients=8)
    result = fedge.simulate(
        model, clients, rounds=15, learning_rate=0.5, test=(X[200:], Y[200:]), progress=False
    )
    for weights, old in zip(model.get_weights(), before, strict=True):
        assert np.array_equal(weights, old)  # the model that was given is as it was
    trained = result.to_keras()
    loss, accuracy = trained.evaluate(X[200:], Y[200:], verbose=0)
    assert accuracy >= 0.85
    assert accuracy == pytest.approx(result.final["central_accuracy"], abs=1e-6)
    assert loss == pytest.approx(result.final["central_loss"], rel=1e-4)
    predicted = trained.predict(X[:5], verbose=0)
    assert np.allclose(predicted, result.predict(X[:5]), atol=1e-6)


def test_a_package_that_was_exported_once_is_the_model() -> None:
    package = fedge.export(dense(), batch_size=8, classes=("low", "high"))
    assert package.spec.targets[0].classes == ("low", "high")
    names = np.array(["low", "high"])[Y]
    found = [
        fedge.simulate(package, [(X, y)], rounds=1, batch_size=8, progress=False).theta
        for y in (Y, names)
    ]
    assert np.array_equal(found[0], found[1])


def test_several_inputs_are_given_by_name() -> None:
    left = keras.Input((3,), name="left")
    right = keras.Input((1,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    model = keras.Model([left, right], keras.layers.Dense(1)(joined))
    model.compile(loss="mse")
    rows = {"left": X[:, :3], "right": X[:, 3]}
    clients = {"a": (rows, Y), "b": {**rows, "target": Y}}
    result = fedge.simulate(model, clients, rounds=2, learning_rate=0.01, progress=False)
    few = {"left": X[:2, :3], "right": X[:2, 3:]}
    wanted = result.to_keras().predict(few, verbose=0)
    assert np.allclose(result.predict(few), wanted[:, 0], atol=1e-6)
    assert result.predict(rows).shape == (240,)


def test_several_targets_are_given_by_name_or_in_order() -> None:
    sensors = keras.Input((4,), name="sensors")
    outputs = [
        keras.layers.Dense(1, name="wear")(sensors),
        keras.layers.Dense(3, activation="softmax", name="state")(sensors),
    ]
    model = keras.Model(sensors, outputs)
    model.compile(loss=["mse", "sparse_categorical_crossentropy"], metrics=[["mae"], ["accuracy"]])
    wear = X[:, 0]
    clients = [(X, {"wear": wear, "state": Y}), (X, [wear, Y])]
    result = fedge.simulate(model, clients, rounds=1, progress=False)
    first, second = result.agents
    assert first["wear_mae"] == second["wear_mae"]
    predicted = result.predict(X[:3])
    assert {name: array.shape for name, array in predicted.items()} == {
        "wear": (3,),
        "state": (3, 3),
    }


def test_an_autoencoder_takes_rows_alone() -> None:
    model = keras.Sequential(
        [keras.Input((4,), name="sensors"), keras.layers.Dense(2), keras.layers.Dense(4)]
    )
    model.compile(loss="mse")
    package = fedge.export(model, reconstruct="sensors")
    result = fedge.simulate(package, [X[:120], X[120:]], rounds=1, test=X, progress=False)
    wanted = float(np.mean((result.predict(X) - X) ** 2))
    assert result.final["central_loss"] == pytest.approx(wanted, rel=1e-4)


def test_a_model_that_cannot_be_exported_is_told_why() -> None:
    with pytest.raises(ExportError, match="compile"):
        fedge.simulate(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), [(X, Y)])


def test_the_notebook_of_an_own_model_runs() -> None:
    pytest.importorskip("nbclient")
    outputs = execute("keras_model")
    texts = [output["text/plain"] for output in outputs if "text/plain" in output]
    assert texts[-1].startswith("{'keras': 0.9")
    assert sum("image/png" in output for output in outputs) == 1
