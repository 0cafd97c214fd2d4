"""Exported packages, and models that are rejected before or after conversion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.lite.tools import flatbuffer_utils

from fedge.errors import ExportError, ModelError
from learning.vector.metrics import MetricSpec
from models.export.backend import keras
from models.export.exporter import export_model
from models.export.random_rows import random_batch
from models.package.package import load_package
from models.package.spec import TensorSpec
from models.runtime.program import Program

layers = keras.layers


def build(*middle: Any, shape: tuple[int, ...] = (12, 6)) -> Any:
    model = keras.Sequential(
        [keras.Input(shape, name="window"), *middle, layers.Flatten(), layers.Dense(1)]
    )
    model.compile(loss="mse", metrics=["mae"])
    return model


def test_the_spec_describes_the_model() -> None:
    given = TensorSpec("window", (12, 6), units=("g",), mean=(0.5,), std=(2.0,))
    package = export_model(
        build(layers.Conv1D(4, 3)), name="m", source="here", batch_size=7, inputs=[given]
    )
    spec = package.spec
    assert (spec.name, spec.source, spec.batch_size) == ("m", "here", 7)
    assert spec.inputs == (given,)
    assert (spec.loss, spec.metrics) == ("mean_squared_error", (MetricSpec("mae"),))
    assert [(p.name, p.shape) for p in spec.layout.parameters] == [
        ("conv1d/kernel", (3, 6, 4)),
        ("conv1d/bias", (4,)),
        ("dense/kernel", (40, 1)),
        ("dense/bias", (1,)),
    ]


def test_a_second_export_in_the_same_process_is_the_same() -> None:
    """Keras numbers layers and inputs per process; packages do not depend on it."""

    def once() -> Any:
        model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(1)])
        model.compile(loss="mse")
        for variable in model.trainable_variables:
            variable.assign(np.full(variable.shape, 0.5, np.float32))
        return export_model(model, name="again")

    first, second = once(), once()
    assert first.spec == second.spec
    assert first.spec.inputs[0].name == "input"
    assert first.program == second.program
    assert first.digest == second.digest


def test_layers_inside_models_and_wrappers_have_the_same_names_in_every_export() -> None:
    def once() -> list[str]:
        inner = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(3)], name="in")
        both = layers.Bidirectional(layers.GRU(2))
        each = layers.TimeDistributed(inner)
        model = keras.Sequential([keras.Input((2, 4)), each, both, layers.Dense(1)])
        model.compile(loss="mse")
        return [p.name for p in export_model(model, name="m").spec.layout.parameters]

    first = once()
    assert first == once()
    assert first[:4] == [
        "time_distributed/in/dense/kernel",
        "time_distributed/in/dense/bias",
        "time_distributed/in/dense_1/kernel",
        "time_distributed/in/dense_1/bias",
    ]
    assert "bidirectional/backward_gru/gru_cell/kernel" in first


@pytest.mark.parametrize("rows", [3, 5, 8, 11, 29])
def test_several_batch_sizes_give_the_results_of_one(
    rows: int, both_sizes: tuple[Program, Program, Any]
) -> None:
    one, two, theta = both_sizes
    batch = random_batch(one.spec, np.random.default_rng(rows), rows)
    assert two.gradient(theta, batch).vector == pytest.approx(
        one.gradient(theta, batch).vector, abs=1e-5
    )
    assert two.evaluate(theta, batch).loss == pytest.approx(one.evaluate(theta, batch).loss)
    assert two.predict(theta, batch)["prediction"] == pytest.approx(
        one.predict(theta, batch)["prediction"], abs=1e-5
    )


@pytest.fixture(scope="module")
def both_sizes() -> tuple[Program, Program, Any]:
    keras.utils.set_random_seed(5)
    model = build(layers.Conv1D(4, 3, activation="relu"))
    one, two = (export_model(model, name="m", batch_size=size) for size in (8, (8, 3)))
    assert one.spec.batch_sizes == (8,)
    assert b"more_batch_sizes" not in one.spec.to_json()
    assert two.spec.batch_sizes == (8, 3)
    assert len(one.program) < len(two.program) < 2 * len(one.program)
    runtime = "ai-edge-litert"
    programs = (Program(it.program, it.spec, runtime=runtime) for it in (one, two))
    return next(programs), next(programs), one.initial


def test_equal_or_too_many_batch_sizes_are_rejected() -> None:
    for sizes in ((8, 8), (1, 2, 3, 4, 5), (0,)):
        with pytest.raises(ExportError, match="batch"):
            export_model(build(), name="m", batch_size=sizes)


def test_the_digest_survives_the_disk(tmp_path: Path) -> None:
    package = export_model(build(), name="m")
    package.save(tmp_path)
    assert load_package(tmp_path).digest == package.digest


def test_a_program_with_another_main_subgraph_is_rejected() -> None:
    package = export_model(build(), name="m")
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(package.program))
    model.subgraphs.append(model.subgraphs.pop(0))
    for signature in model.signatureDefs:
        signature.subgraphIndex = (signature.subgraphIndex - 1) % len(model.subgraphs)
    turned = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    with pytest.raises(ModelError, match="main subgraph is not that of 'gradient'"):
        Program(turned, package.spec)


def test_programs_are_small_and_carry_no_weights() -> None:
    narrow, wide = (
        export_model(build(layers.Dense(units, activation="relu")), name="m") for units in (4, 400)
    )
    assert wide.spec.size > 50 * narrow.spec.size / 4
    assert abs(len(wide.program) - len(narrow.program)) < 2_000  # large products transpose
    assert len(wide.program) < 20_000


def test_programs_are_verified_with_tensorflow_if_no_other_runtime_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    package = export_model(build(), name="m")
    program = Program(package.program, package.spec)
    assert program.runtime.startswith("tensorflow ")


def test_tensorflow_s_own_interpreter_agrees_with_litert() -> None:
    package = export_model(build(), name="m")
    rows = random_batch(package.spec, np.random.default_rng(3))
    one, two = (
        Program(package.program, package.spec, runtime=name).gradient(package.initial, rows)
        for name in ("tensorflow", "ai-edge-litert")
    )
    assert np.linalg.norm(one.vector - two.vector) <= 1e-5 * np.linalg.norm(two.vector)


def test_tflite_runtime_beside_tensorflow_is_rejected() -> None:
    package = export_model(build(), name="m")
    with pytest.raises(ModelError, match="cannot share a process with TensorFlow"):
        Program(package.program, package.spec, runtime="tflite-runtime")


class Table(keras.layers.Layer):  # type: ignore[misc]
    """Layer with state that is not trained."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], name="table", trainable=False)

    def call(self, x: Any) -> Any:
        return x + self.table


def named(layer: Callable[..., Any], *sizes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: build(layer(*sizes, name="culprit", **options))


def in_image(layer: Callable[..., Any], *sizes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: build(layer(*sizes, name="culprit", **options), shape=(8, 8, 2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (named(layers.GRU, 4, dropout=0.5), "no dropout inside cells: use a Dropout layer"),
        (named(layers.LSTM, 4, recurrent_dropout=0.5), "no dropout inside cells"),
        (named(layers.LSTM, 4, recurrent_regularizer="l2"), "recurrent_regularizer would be ign"),
        (in_image(layers.UpSampling2D, 2, interpolation="bilinear"), "use 'nearest', or Conv2DT"),
        (in_image(layers.Conv2DTranspose, 4, 3, dilation_rate=2), "use dilation_rate=1"),
        (in_image(layers.Resizing, 4, 4), "change the images before they are stored"),
        (in_image(layers.RandomFlip, "horizontal"), "change the images before they are stored"),
        (named(layers.Dense, 4, dtype="float16"), "computes in float16"),
        (named(layers.Dense, 4, dtype="mixed_float16"), "computes in mixed_float16"),
        (named(layers.Dense, 4, kernel_regularizer="l2"), "kernel_regularizer would be ignored"),
        (named(layers.BatchNormalization, renorm=True), "use renorm=False"),
        (named(layers.Hashing, 4), "hash when the rows are stored"),
        (named(layers.IntegerLookup, vocabulary=[1, 2]), "look up indexes when the rows are"),
        (named(Table), r"culprit/table\): freeze the layer \(trainable=False\), or make what ne"),
    ],
)
def test_unsupported_layers_are_named(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ExportError, match=f"layer 'culprit' .*{says}"):
        export_model(make(), name="m")


def test_an_unsupported_layer_inside_a_wrapper_is_named() -> None:
    inner = layers.Normalization(name="inside")
    with pytest.raises(
        ExportError, match=r"'inside' .*it has no mean and variance: call its adapt"
    ):
        export_model(build(layers.TimeDistributed(inner)), name="m")


class Turn(keras.layers.Layer):  # type: ignore[misc]
    """Layer that reverses two axes in one operator."""

    def call(self, x: Any) -> Any:
        return keras.ops.flip(x, [1, 2])


def test_reversing_several_axes_is_rejected() -> None:
    with pytest.raises(ExportError, match="reverses several axes: reverse one at a time"):
        export_model(build(Turn()), name="m")


def test_an_operator_without_a_builtin_is_named_with_its_layer() -> None:
    model = build(layers.Dense(4, activation=keras.ops.erf, name="strange"))
    with pytest.raises(ExportError, match="no TFLite built-in operator for Erf in layer 'strange'"):
        export_model(model, name="m")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (keras.ops.tan, r"operator for Tan \(made by keras.ops.tan\): use another"),
        (
            lambda x: x * keras.ops.one_hot(keras.ops.argmax(x, -1), 4),
            r"BitwiseAnd \(made by keras.ops.argmax\)",
        ),
        (keras.ops.erf, r"Erf .*: use keras.activations.gelu there"),
        (
            lambda x: keras.ops.take_along_axis(x, keras.ops.argsort(x, -1), -1),
            r"built-ins: GatherV2: a gather with different indexes for each row",
        ),
        (
            lambda x: keras.ops.slice_update(x, (0, 1, 0), np.ones((1, 2, 4), np.float32)),
            r"No gradient defined for operation'XlaDynamicUpdateSlice' \(op type: \w+\)$",
        ),
    ],
    ids=["operator", "several operators", "gelu", "own gradient", "no gradient"],
)
def test_functions_without_builtins_are_named(function: Callable[[Any], Any], says: str) -> None:
    x = keras.Input((3, 4))
    model = keras.Model(x, keras.ops.sum(function(layers.Dense(4)(x)), -1))
    model.compile(loss="mse")
    with pytest.raises(ExportError, match=says):
        export_model(model, name="m")


class Noisy(keras.layers.Layer):  # type: ignore[misc]
    """Layer that draws random numbers of Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed) if training else x


def test_custom_random_layers_get_alternatives() -> None:
    with pytest.raises(ExportError, match=r"Random.* 'noisy.*: use Dropout, GaussianNoise or "):
        export_model(build(Noisy()), name="m")


class OnlyWhileTraining(keras.layers.Layer):  # type: ignore[misc]
    """Layer that doubles its input in training only; no check detects it."""

    def call(self, x: Any, training: bool = False) -> Any:
        return 2 * x if training else x


def test_a_model_that_evaluates_differently_from_training_is_rejected() -> None:
    with pytest.raises(ExportError, match=r"evaluate returns .*: does a layer of your own behave"):
        export_model(build(OnlyWhileTraining()), name="m")


def test_invalid_models_are_rejected() -> None:
    with pytest.raises(ExportError, match=r"expected a compiled keras.Model, got int"):
        export_model(3, name="m")
    unbuilt = keras.Sequential([layers.Dense(1)])
    unbuilt.compile(loss="mse")
    with pytest.raises(ExportError, match="does not know its input: begin it with"):
        export_model(unbuilt, name="m")
    endless = keras.Sequential(
        [keras.Input((None, 6)), layers.GlobalMaxPooling1D(), layers.Dense(1)]
    )
    endless.compile(loss="mse")
    with pytest.raises(ExportError, match=r"shape \(None, 6\): every side must be known"):
        export_model(endless, name="m")
    x = keras.Input((3,))
    two = keras.Model(x, [layers.Dense(1)(x), layers.Dense(1)(x)])
    two.compile(loss=["mse", None])
    with pytest.raises(ExportError, match="has no loss: give compile\\(\\) one for every output"):
        export_model(two, name="m")


def test_an_input_name_that_is_too_long_is_rejected() -> None:
    x = keras.Input((3,), name="x" * 65)
    model = keras.Model(x, layers.Dense(1)(x))
    model.compile(loss="mse")
    with pytest.raises(ExportError, match=r"input 0: tensor name 'x+' must be a plain ident"):
        export_model(model, name="m")


def test_input_specs_must_fit_the_model() -> None:
    with pytest.raises(ExportError, match=r"input spec 'window' is float32 \(6,\), the model's"):
        export_model(build(), name="m", inputs=[TensorSpec("window", (6,))])
    with pytest.raises(ExportError, match="2 input specs for a model of 1"):
        export_model(build(), name="m", inputs=[TensorSpec("a"), TensorSpec("b")])
    with pytest.raises(ExportError, match="target of mean_squared_error is not a class"):
        export_model(build(), name="m", classes=["a", "b"])


def test_exports_in_two_processes_have_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.zoo import zoo_record;"
        "from models.zoo.exporting import export_record;"
        "export_record(zoo_record('house_price')).save(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / name)],
            check=True,
            cwd=root,
            timeout=100,
        )
    one, two = (load_package(tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest
    assert np.array_equal(one.initial, two.initial)
