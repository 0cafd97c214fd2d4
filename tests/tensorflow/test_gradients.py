"""Exported gradients of all layers, compared with Keras's gradient tape on random rows."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import TrainingError
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.layers import im2col
from models.export.random_rows import random_batch
from models.export.reference import Reference
from models.export.verify import relative_error
from models.inspect.cost import analyse
from models.runtime.program import Program
from models.vectorized.kernel import UnsupportedError, VectorizedProgram, check_kernel
from tests.tensorflow.cases import all_cases, table
from tests.tensorflow.groups import ROWS, SEED, Exported, export_group, grouped

layers = keras.layers
LIMIT = 1e-5
ROOT = Path(__file__).parents[2]

GROUPS = grouped(all_cases())
CASES = [(group, case.name) for group, cases in GROUPS.items() for case in cases]

#: Groups with dilated windows, depth multipliers, loops or random numbers.
NOT_IN_NUMPY = {
    *("series.1", "image.1", "image.2"),
    *("long.1", "long masked.1"),
    *("series random.1", "image random.1"),
}


@functools.cache
def exported(group: str) -> Exported:
    return export_group(GROUPS[group])


@functools.cache
def computed_program(group: str) -> Program:
    package = exported(group).package
    return Program(package.program, package.spec, runtime="ai-edge-litert")


@functools.cache
def computed(group: str) -> Any:
    it, program = exported(group), computed_program(group)
    gradient = program.gradient(it.package.initial, it.rows, seed=SEED)
    return gradient, program.predict(it.package.initial, it.rows)["prediction"]


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{g}: {c}" for g, c in CASES])
def test_gradients_equal_keras_s(group: str, case: str) -> None:
    it = exported(group)
    part = it.parts[case]
    assert np.linalg.norm(it.gradient[part]) > 1e-6
    got, _ = computed(group)
    assert relative_error(got.vector[part], it.gradient[part]) <= LIMIT


@pytest.mark.parametrize("group", GROUPS)
def test_programs_in_numpy_equal_the_interpreter_or_say_what_they_cannot(group: str) -> None:
    it = exported(group)
    package, program = it.package, computed_program(group)
    try:
        kernel = VectorizedProgram(package.program, package.spec, frozen=package.frozen)
    except UnsupportedError as error:
        assert re.search("interpreter", str(error))  # noqa: PT017  either way is right
        assert group in NOT_IN_NUMPY
        return
    assert group not in NOT_IN_NUMPY
    rows = {name: np.stack([array, array[::-1]]) for name, array in it.rows.items()}
    check_kernel(kernel, program, package.whole(package.initial), rows)


@pytest.mark.parametrize("group", GROUPS)
def test_loss_and_predictions_equal_keras_s(group: str) -> None:
    it = exported(group)
    got, prediction = computed(group)
    assert got.sums.loss / ROWS == pytest.approx(it.loss, rel=1e-5)
    assert prediction == pytest.approx(it.output, abs=1e-5)


_CHILD = """
import sys
from pathlib import Path
import numpy as np
from models.package.package import load_package
from models.runtime.program import Program
from models.vectorized.kernel import UnsupportedError, VectorizedProgram, check_kernel
for folder in sorted(Path(sys.argv[1]).iterdir()):
    package = load_package(folder)
    program = Program(package.program, package.spec, runtime="tflite-runtime")
    rows = {name: np.load(folder / f"{name}.npy") for name in ("x", "target")}
    got = program.gradient(package.initial, rows, seed=11)
    np.save(folder / "gradient.npy", got.vector)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tflite_runtime") is None, reason="tflite-runtime is not installed"
)
def test_tflite_runtime_computes_the_same_gradients(tmp_path: Path) -> None:
    folders = {group: tmp_path / f"{index:02}" for index, group in enumerate(GROUPS)}
    for group, folder in folders.items():
        it = exported(group)
        it.package.save(folder)
        for name, array in it.rows.items():
            np.save(folder / f"{name}.npy", array)
    subprocess.run([sys.executable, "-c", _CHILD, str(tmp_path)], check=True, cwd=ROOT, timeout=60)
    errors = {}
    for group, folder in folders.items():
        got, it = np.load(folder / "gradient.npy"), exported(group)
        for case, part in it.parts.items():
            errors[f"{group}: {case}"] = relative_error(got[part], it.gradient[part])
    assert {case: error for case, error in errors.items() if not error <= LIMIT} == {}


def test_the_documented_layers_are_the_tested_ones() -> None:
    """`python -m tests.tensorflow.cases` prints the table."""
    assert table() in (ROOT / "docs" / "models.md").read_text()


def two_inputs() -> Any:
    left, right = keras.Input((4,), name="left"), keras.Input((5,), name="right")
    joined = layers.Concatenate()(
        [layers.Dense(4, activation="relu")(left), layers.Dense(3)(right)]
    )
    return keras.Model([left, right], layers.Dense(3, activation="softmax")(joined))


def nested_and_used_twice() -> Any:
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, activation="relu")])
    end = [layers.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((6,)), layers.Dense(8), inner, inner, *end])


def random_and_used_twice() -> Any:
    drop, x = layers.Dropout(0.5), keras.Input((6,))
    seen = drop(layers.Dense(8)(drop(layers.Dense(8)(x))))
    return keras.Model(x, layers.Dense(3, activation="softmax")(seen))


@pytest.mark.parametrize("build", [two_inputs, nested_and_used_twice, random_and_used_twice])
def test_nested_shared_and_multi_input_models_are_exported(build: Callable[[], Any]) -> None:
    model = build()
    model.compile(loss="sparse_categorical_crossentropy")
    package = export_model(model, name="form", batch_size=ROWS)
    rows = random_batch(package.spec, np.random.default_rng(4))
    program = Program(package.program, package.spec, runtime="ai-edge-litert")
    got = program.gradient(package.initial, rows, seed=SEED)
    loss, gradient, _ = Reference(model, package).gradient(package.initial, rows, SEED)
    assert relative_error(got.vector, gradient) <= LIMIT
    assert got.sums.loss / ROWS == pytest.approx(loss, rel=1e-5)


def convolutions() -> Any:
    x = start = keras.Input((12, 11, 2))
    for layer in (
        layers.Conv2D(4, 3),
        layers.Conv2D(4, (3, 2), strides=2, padding="same", groups=2),
        layers.Conv2D(3, 2, dilation_rate=2, padding="same"),
    ):
        x = layer(x)
    return keras.Model(start, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


@pytest.mark.parametrize(("largest", "kernels"), [(0, 3), (1 << 20, 0)])
def test_convolutions_above_the_memory_limit_stay_convolutions(
    largest: int, kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(im2col, "MAX_NUMBERS", largest)
    model = convolutions()
    model.compile(loss="sparse_categorical_crossentropy")
    package = export_model(model, name="convolutions", batch_size=ROWS)
    operators = analyse(package.program)["predict"].operators
    assert operators.get("CONV_2D", 0) >= kernels
    assert ("CONV_2D" in operators) is bool(kernels)
    rows = random_batch(package.spec, np.random.default_rng(4))
    got = Program(package.program, package.spec).gradient(package.initial, rows)
    loss, gradient, _ = Reference(model, package).gradient(package.initial, rows)
    assert relative_error(got.vector, gradient) <= LIMIT
    assert got.sums.loss / ROWS == pytest.approx(loss, rel=1e-5)


def test_large_products_have_separate_transpositions() -> None:
    """XNNPACK has no product with a transposed operand."""
    model = keras.Sequential(
        [keras.Input((64,)), *[layers.Dense(128, activation="relu") for _ in range(2)]]
    )
    model.compile(loss="mean_squared_error")
    operators = analyse(export_model(model, name="wide").program)["gradient"].operators
    assert operators["BATCH_MATMUL"] == 5
    assert operators["TRANSPOSE"] == 3
    assert "FULLY_CONNECTED" not in operators


def test_a_program_does_not_grow_with_the_steps_of_a_long_layer() -> None:
    sizes, flops = [], []
    for steps in (40, 400):
        model = keras.Sequential([keras.Input((steps, 2)), layers.SimpleRNN(3), layers.Dense(1)])
        model.compile(loss="mean_squared_error")
        program = export_model(model, name="long", batch_size=ROWS).program
        sizes.append(len(program))
        cost = analyse(program)["gradient"]
        flops.append(cost.flops)
        counts = list(cost.operators.values())
        assert counts == sorted(counts, reverse=True)  # those inside loops among them
    assert abs(sizes[1] - sizes[0]) < 1_000
    assert sizes[1] < 40_000
    assert 9 < flops[1] / flops[0] < 11  # each turn of its loops counts


@pytest.mark.parametrize("stride", [1, 2])
def test_the_first_of_equal_maxima_gets_the_gradient(stride: int) -> None:
    """In a blank image all elements of a window are equal, also after a convolution with bias."""
    pool = layers.MaxPooling2D(2, strides=stride)
    model = keras.Sequential(
        [
            keras.Input((8, 7, 3)),
            layers.Conv2D(4, 3),
            pool,
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy")
    package = export_model(model, name="ties", batch_size=ROWS)
    blank = {
        "input": np.zeros((ROWS, 8, 7, 3), np.float32),
        "target": np.arange(ROWS, dtype=np.int32) % 3,
    }
    got = Program(package.program, package.spec).gradient(package.initial, blank)
    _, gradient, _ = Reference(model, package).gradient(package.initial, blank)
    assert relative_error(got.vector, gradient) <= LIMIT


@pytest.mark.parametrize("index", [9, -10, 2**31 - 1])
def test_an_index_outside_an_embedding_is_a_training_error(index: int) -> None:
    it = exported("words.1")
    program = Program(it.package.program, it.package.spec, runtime="ai-edge-litert")
    words = it.rows["x"].copy()
    words[2, 1] = index
    with pytest.raises(TrainingError, match="gather index out of bounds"):
        program.gradient(it.package.initial, {**it.rows, "x": words})
