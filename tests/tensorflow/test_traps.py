"""Cases that plain random batches do not cover: short batches, masks, embeddings, penalties."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedge.errors import ExportError, TrainingError
from models.export import verify
from models.export.backend import keras, tf
from models.export.exporter import export_model
from models.export.gradients.overrides import OVERRIDES
from models.export.objective.losses import Triplet
from models.export.reference import Reference
from models.export.verify import relative_error
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.runtime.rows import Array

layers = keras.layers
ROWS = 8


def compiled(model: Any, loss: Any = "mse", **options: Any) -> Any:
    model.compile(loss=loss, **options)
    return model


def chain(*parts: Any, shape: tuple[int, ...] = (6, 2), dtype: str = "float32") -> Any:
    keras.utils.set_random_seed(5)
    return compiled(keras.Sequential([keras.Input(shape, dtype=dtype, name="x"), *parts]))


def export(model: Any, **options: Any) -> tuple[ModelPackage, Program]:
    package = export_model(model, name="trap", batch_size=ROWS, **options)
    return package, Program(package.program, package.spec, frozen=package.frozen)


def assert_keras_own(
    model: Any, made: tuple[ModelPackage, Program], rows: dict[str, Array]
) -> None:
    package, program = made
    got = program.gradient(package.initial, rows)
    loss, gradient, _ = Reference(model, package).gradient(package.initial, rows)
    assert got.loss / got.weight == pytest.approx(loss, rel=1e-5)
    assert relative_error(got.vector, gradient) <= 1e-5


def words() -> Any:
    table = layers.Embedding(9, 4, mask_zero=True)
    return chain(table, layers.GlobalAveragePooling1D(), layers.Dense(1), shape=(5,), dtype="int32")


def masked(*parts: Any) -> Any:
    return chain(layers.Masking(-1.0), *parts, layers.GlobalAveragePooling1D(), layers.Dense(1))


def cosine() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    angle = layers.Dot(-1, normalize=True)([layers.Dense(3)(a), layers.Dense(3)(b)])
    return compiled(keras.Model([a, b], layers.Dense(1)(angle)))


@pytest.mark.parametrize(
    "build",
    [
        words,
        masked,
        lambda: chain(layers.UnitNormalization(), layers.Flatten(), layers.Dense(1)),
        cosine,
    ],
    ids=["table", "mask", "norm", "angle"],
)
def test_gradients_of_a_short_batch_equal_keras_s(build: Callable[[], Any]) -> None:
    model = build()
    made = export(model)
    rng = np.random.default_rng(1)
    rows: dict[str, Array] = {
        t.name: rng.integers(1, 9, (3, *t.shape), dtype=np.int32)
        if t.dtype == "int32"
        else rng.standard_normal((3, *t.shape)).astype(np.float32)
        for t in made[0].spec.columns
    }
    assert_keras_own(model, made, rows)
    assert np.isfinite(made[1].evaluate(made[0].initial, rows).loss)


def test_batch_normalization_ignores_masked_steps() -> None:
    model = masked(layers.Dense(3), layers.BatchNormalization())
    made = export(model)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((ROWS, 6, 2)).astype(np.float32)
    x[::2, 3:] = -1.0
    target = rng.standard_normal(ROWS).astype(np.float32)
    assert_keras_own(model, made, {"x": x, "target": target})


def test_random_rows_have_an_unmasked_id() -> None:
    table = layers.Embedding(3, 4, mask_zero=True)
    parts = (table, layers.GlobalAveragePooling1D(), layers.Dense(1))
    export(chain(*parts, shape=(2,), dtype="int32"))


class Spread(keras.layers.Layer):  # type: ignore[misc]
    """Layer that divides by 0."""

    def call(self, x: Any) -> Any:
        return x / (x - x)


class Penalty(keras.layers.Layer):  # type: ignore[misc]
    """Layer that adds a loss."""

    def call(self, x: Any) -> Any:
        self.add_loss(0.5 * keras.ops.mean(x * x))
        return x


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (
            lambda: chain(Spread(), layers.Flatten(), layers.Dense(1)),
            "Keras itself finds a loss of",
        ),
        (lambda: chain(Penalty(), layers.Flatten(), layers.Dense(1)), r"adds 1 losses of its own"),
        (
            lambda: chain(layers.Flatten(), layers.Dense(1, kernel_constraint="non_neg")),
            "kernel_constraint would be ignored",
        ),
    ],
    ids=["not finite", "add_loss", "constraint"],
)
def test_added_losses_constraints_and_nan_are_rejected(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        export(build())


def test_a_constraint_of_a_frozen_layer_is_accepted() -> None:
    frozen = layers.Dense(3, kernel_constraint="non_neg", trainable=False)
    export(chain(layers.Flatten(), frozen, layers.Dense(1)))


# --- frozen layers --------------------------------------------------------------------------------


def test_small_variances_of_a_frozen_normalization_survive_beside_large_ones() -> None:
    model = chain(layers.BatchNormalization(name="norm"), layers.Dense(1), shape=(40,))
    norm = model.get_layer("norm")
    norm.moving_variance.assign(np.geomspace(1e-4, 1e4, 40).astype(np.float32))
    package, _ = export(model, train=["dense"])
    assert package.frozen is not None
    assert np.array_equal(package.frozen[-40:], np.asarray(norm.moving_variance))


def test_each_frozen_matrix_has_scales_of_its_own() -> None:
    model = chain(layers.Dense(8, name="small"), layers.Dense(8, name="large"), layers.Dense(1))
    kernels = [model.get_layer(name).kernel for name in ("small", "large")]
    for kernel, size in zip(kernels, (1e-3, 1e3), strict=True):
        kernel.assign(np.asarray(kernel) * size)
    package, _ = export(model, train=["dense"])
    assert package.frozen is not None
    small = np.asarray(kernels[0]).reshape(-1)
    assert np.abs(package.frozen[: small.size] - small).max() <= np.abs(small).max() / 127


def test_frozen_layers_are_stored_unrounded_if_rounding_changes_outputs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = chain(layers.Dense(64, name="wide"), layers.Dense(1, name="head"), shape=(300,))
    kernel = np.asarray(model.get_layer("wide").kernel) * 1e-3
    kernel[::4] = 50.0  # for inputs that are never used: one in every block of 256 numbers
    model.get_layer("wide").kernel.assign(kernel)
    used = (np.arange(300) % 4 != 0).astype(np.float32)
    zero = chain(layers.Lambda(lambda x: x * used), shape=(300,))
    model = compiled(
        keras.Sequential([keras.Input((300,), name="x"), zero.layers[0], *model.layers])
    )
    with caplog.at_level(logging.WARNING):
        package, _ = export(model, train=["head"])
    assert "stored at four bytes a number" in caplog.text
    assert package.frozen is not None
    assert np.array_equal(package.frozen[: kernel.size], kernel.reshape(-1))


# --- objectives -----------------------------------------------------------------------------------


def both() -> Any:
    keras.utils.set_random_seed(6)
    x = keras.Input((5,), name="sensors")
    hidden = layers.Dense(6, activation="tanh")(x)
    kind = layers.Dense(3, activation="softmax", name="kind")(hidden)
    return keras.Model(x, [kind, layers.Dense(1, name="age")(hidden)])


def test_class_weights_count_for_the_first_of_several_outputs() -> None:
    model = compiled(both(), ["sparse_categorical_crossentropy", "mse"])
    package, program = export(model, class_weight={0: 3.0, 2: 0.5})
    plain, _ = export(model)
    rng = np.random.default_rng(3)
    rows: dict[str, Array] = {
        "sensors": rng.standard_normal((ROWS, 5)).astype(np.float32),
        "target_kind": np.zeros(ROWS, np.int32),
        "target_age": np.zeros(ROWS, np.float32),
    }
    outputs = program.predict(package.initial, rows)
    kind, age = -np.log(outputs["kind"][:, 0]), outputs["age"] ** 2
    assert program.evaluate(package.initial, rows).loss == pytest.approx(
        float((3 * kind + age).sum()), rel=1e-5
    )
    assert plain.program != package.program


def mae(y: Any, p: Any) -> Any:
    return 100 * keras.ops.mean(abs(y - p))


class MeanSquaredError(keras.losses.Loss):  # type: ignore[misc]
    """Custom loss with a name of Keras."""

    def call(self, y: Any, p: Any) -> Any:
        return keras.ops.mean(abs(y - p))


@pytest.mark.parametrize("loss", [mae, MeanSquaredError()])
def test_a_custom_loss_with_a_keras_name_is_rejected(loss: Any) -> None:
    model = compiled(chain(layers.Flatten(), layers.Dense(1)), loss)
    with pytest.raises(ExportError, match="cannot be exported: name one of Keras's own"):
        export(model)


def test_custom_and_ambiguous_metrics_are_rejected() -> None:
    model = chain(layers.Flatten(), layers.Dense(1, activation="sigmoid"))
    with pytest.raises(ExportError, match="metric 'mae' is given as a function: give the name"):
        export(compiled(model, metrics=[mae]))
    cuts = [keras.metrics.Precision(thresholds=cut, name=f"p{cut}") for cut in (0.3, 0.7)]
    with pytest.raises(ExportError, match="two metrics are called 'precision' here"):
        export(compiled(model, "binary_crossentropy", metrics=cuts))
    same = [keras.metrics.MeanAbsoluteError(), "mae", keras.metrics.MeanAbsoluteError(name="other")]
    package, _ = export(compiled(model, metrics=same))
    assert [metric.name for metric in package.spec.metrics] == ["mae"]


def test_an_auc_of_sequences_is_rejected() -> None:
    model = chain(layers.Dense(2, activation="softmax"))
    with pytest.raises(ExportError, match="metric 'auc' cannot be exported"):
        export(compiled(model, "sparse_categorical_crossentropy"), metrics=["auc"])


@pytest.mark.parametrize(
    "given",
    [
        {"metrics": ["f1"]},
        {"class_weight": {1: 2.0}},
        {"classes": ("a", "b")},
        {"reconstruct": "x"},
    ],
    ids=lambda given: next(iter(given)),
)
def test_options_of_compiled_losses_are_rejected_with_triplets(given: dict[str, Any]) -> None:
    inputs = [keras.Input((4,), name=name) for name in ("anchor", "like", "unlike")]
    shared = layers.Dense(2)
    model = keras.Model(inputs, [shared(x) for x in inputs])
    with pytest.raises(ExportError, match=f"{next(iter(given))} goes with a compiled loss"):
        export(model, loss=Triplet(), **given)


def test_classes_of_a_reconstruction_are_rejected() -> None:
    model = chain(layers.Dense(4), shape=(4,))
    with pytest.raises(ExportError, match="classes given for a reconstruction"):
        export(model, reconstruct="x", classes=("a", "b"))


# --- shapes of models -----------------------------------------------------------------------------


def test_dicts_of_inputs_and_outputs_are_named_by_their_keys() -> None:
    keras.utils.set_random_seed(7)
    inputs = {"late": keras.Input((3,), name="late"), "early": keras.Input((2,), name="early")}
    hidden = layers.Dense(5)(layers.Concatenate()(list(inputs.values())))
    outputs = {"wear": layers.Dense(1, name="d1")(hidden), "kind": layers.Dense(3)(hidden)}
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = compiled(keras.Model(inputs, outputs), {"wear": "mse", "kind": crossentropy})
    package, _ = export(model)
    assert {t.name: t.shape for t in package.spec.inputs} == {"late": (3,), "early": (2,)}
    assert [t.name for t in package.spec.targets] == ["target_kind", "target_wear"]


@pytest.mark.parametrize("size", [np.int64(4), [np.int64(4)]])
def test_a_batch_size_may_be_a_numpy_integer(size: Any) -> None:
    model = chain(layers.Flatten(), layers.Dense(1))
    assert export_model(model, name="m", batch_size=size).spec.batch_size == 4


def test_an_empty_batch_size_is_rejected() -> None:
    with pytest.raises(ExportError, match="batch_size is empty"):
        export_model(chain(layers.Flatten(), layers.Dense(1)), name="m", batch_size=[])


def gelu(x: Any) -> Any:
    """Custom gelu: x·sigmoid(1.702 x)."""
    return x * keras.ops.sigmoid(1.702 * x)


class Standardized(keras.layers.Conv1D):  # type: ignore[misc]
    """A convolution whose kernel has mean 0 (Qiao et al. 2019, arXiv 1903.10520)."""

    def call(self, x: Any) -> Any:
        kernel = self.kernel - keras.ops.mean(self.kernel, axis=(0, 1), keepdims=True)
        return keras.ops.conv(x, kernel, padding="valid")


def test_custom_layers_and_activations_are_not_replaced() -> None:
    export(
        chain(
            Standardized(4, 3, use_bias=False),
            layers.Flatten(),
            layers.Dense(3, activation=gelu),
            layers.Dense(1),
        )
    )


class Broken(keras.layers.Layer):  # type: ignore[misc]
    """Layer that fails when traced for a fixed batch, not when the model is built."""

    def call(self, x: Any) -> Any:
        if x.shape[0] is not None:
            raise TypeError("no fixed batches\nplease")
        return x


def test_a_layer_that_raises_ends_the_export_in_one_line() -> None:
    model = chain(Broken(), layers.Flatten(), layers.Dense(1))
    with pytest.raises(
        ExportError, match=r"cannot be traced: TypeError: .*no fixed batches"
    ) as told:
        export(model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("channels", [151, 160, 1280])
def test_depthwise_convolutions_of_many_channels_and_rows_run(channels: int) -> None:
    depthwise = layers.DepthwiseConv2D(3, padding="same")
    model = chain(
        depthwise, layers.GlobalAveragePooling2D(), layers.Dense(1), shape=(4, 4, channels)
    )
    export_model(model, name="m", batch_size=32)


def test_a_depthwise_convolution_above_the_channel_limit_is_rejected() -> None:
    model = chain(layers.DepthwiseConv2D(1), layers.Flatten(), layers.Dense(1), shape=(1, 1, 4833))
    with pytest.raises(ExportError, match=r"4833 channels, .* never ends with more than 4832"):
        export(model)


def test_random_rows_of_rescaled_inputs_are_in_the_input_s_range() -> None:
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        parts = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
        scale = layers.Rescaling(1 / 127.5, offset=-1)
        ends = (layers.GlobalAveragePooling2D(), layers.Dense(1))
        export(chain(scale, *parts, *ends, shape=(8, 8, 3)))


@pytest.mark.parametrize(
    ("cell", "steps", "masked_steps"),
    [
        *((cell, 6, n) for n in (0, 3, 6) for cell in (layers.LSTM, layers.GRU, layers.SimpleRNN)),
        (layers.GRU, 37, 20),  # loops
    ],
)
def test_bidirectional_layers_use_masks(cell: Any, steps: int, masked_steps: int) -> None:
    both = layers.Bidirectional(cell(3, return_sequences=True))
    parts = (layers.Masking(-1.0), both, layers.Bidirectional(cell(3)), layers.Dense(1))
    model = chain(*parts, shape=(steps, 2))
    made = export(model)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((ROWS, steps, 2)).astype(np.float32)
    x[::2, steps - masked_steps :] = -1.0
    target = rng.standard_normal(ROWS).astype(np.float32)
    rows: dict[str, Array] = {"x": x, "target": target}
    assert_keras_own(model, made, rows)
    predicted = made[1].predict(made[0].initial, rows)["prediction"]
    assert predicted == pytest.approx(np.asarray(model(x))[:, 0], abs=1e-5)


def test_a_mask_that_reaches_an_output_is_rejected() -> None:
    steps = layers.LSTM(3, return_sequences=True)
    with pytest.raises(ExportError, match="a mask reaches output 0: Keras leaves masked steps out"):
        export(chain(layers.Masking(-1.0), steps, layers.Dense(1)))


@pytest.mark.parametrize("bad_draws", [2, 3])
def test_verification_passes_if_one_draw_agrees(
    monkeypatch: pytest.MonkeyPatch, bad_draws: int
) -> None:
    """Rounding affects draws with activations near 0; a wrong formula affects all draws."""
    draws: list[int] = []
    compare = verify._compare

    def sometimes(*arguments: Any) -> None:
        draws.append(len(draws))
        if len(draws) <= bad_draws:
            raise ExportError("differs")
        compare(*arguments)

    monkeypatch.setattr(verify, "_compare", sometimes)
    model = chain(layers.Flatten(), layers.Dense(1))
    if bad_draws == 3:
        with pytest.raises(ExportError, match=r"^differs$"):
            export(model)
    else:
        export(model)
        assert len(draws) == bad_draws + 2  # a full batch and half of one


def test_a_program_works_after_a_failed_call() -> None:
    package, program = export(words())
    good: dict[str, Array] = {
        "x": np.ones((ROWS, 5), np.int32),
        "target": np.ones(ROWS, np.float32),
    }
    bad = good | {"x": np.full((ROWS, 5), 9, np.int32)}
    expected = program.gradient(package.initial, good)
    kept = []  # errors, as a caller may keep them
    for compute in (program.evaluate, program.gradient, program.evaluate):
        with pytest.raises(TrainingError, match=r"failed: .*out of bounds \(in GATHER\)$") as told:
            compute(package.initial, bad)
        kept.append(told.value)
        again = program.gradient(package.initial, good)
        assert np.array_equal(again.vector, expected.vector)
    assert len(kept) == 3


# --- activations ----------------------------------------------------------------------------------


def test_a_layer_may_be_an_activation() -> None:
    leaky = layers.Dense(4, activation=layers.LeakyReLU(negative_slope=0.1))
    export(chain(layers.Conv1D(3, 2, activation=layers.ELU(0.3)), leaky, layers.GRU(2)))


@pytest.mark.parametrize("name", ["gelu", "softplus", "log_sigmoid", "mish"])
def test_functions_called_by_layers_are_replaced_like_activations(name: str) -> None:
    """Also far from 0, where the converter's softplus is infinite."""
    function = layers.Lambda(lambda x: getattr(keras.activations, name)(x))
    model = chain(layers.Flatten(), layers.Dense(4), function, layers.Dense(1))
    made = export(model)
    x = np.random.default_rng(1).standard_normal((3, 6, 2)).astype(np.float32)
    for size in (1, 100):
        rows: dict[str, Array] = {"x": size * x, "target": np.ones(3, np.float32)}
        assert_keras_own(model, made, rows)


def test_weights_that_are_not_built_are_named() -> None:
    model = chain(layers.Flatten(), layers.Dense(4, activation=layers.PReLU()), layers.Dense(1))
    with pytest.raises(ExportError, match=r"/alpha' are made only when the model is called: call"):
        export(model)
    model(np.zeros((1, 6, 2), np.float32))
    assert any("alpha" in part.name for part in export(model)[0].spec.layout.parameters)


def test_approximate_gelu_is_not_replaced() -> None:
    parts = (layers.Flatten(), layers.Dense(4, activation=keras.ops.gelu), layers.Dense(1))
    export(chain(*parts))


@pytest.mark.parametrize(
    "part",
    [
        lambda: layers.Dense(3, activation="softplus"),
        lambda: layers.Dense(3, activation="selu"),
        lambda: layers.Lambda(lambda x: keras.activations.selu(x)),
        lambda: layers.UnitNormalization(),
    ],
    ids=["softplus", "selu", "selu as a function", "norm"],
)
def test_gradients_at_zero_equal_keras_s(part: Callable[[], Any]) -> None:
    """With zero biases, activations are evaluated at exactly 0."""
    model = chain(layers.Flatten(), layers.Dense(4), part(), layers.Dense(1))
    made = export(model)
    rows: dict[str, Array] = {
        "x": np.zeros((3, 6, 2), np.float32),
        "target": np.ones(3, np.float32),
    }
    assert_keras_own(model, made, rows)
    assert np.isfinite(made[1].predict(made[0].initial, rows)["prediction"]).all()


def test_a_lambda_without_source_is_exported(caplog: pytest.LogCaptureFixture) -> None:
    typed: dict[str, Any] = {}
    exec("twice = lambda x: 2 * x", typed)
    export(chain(layers.Flatten(), layers.Dense(3, activation=typed["twice"]), layers.Dense(1)))
    assert "`fedge model release` will need --model" in caplog.text


# --- what Keras itself does not compute -----------------------------------------------------------


def test_a_model_for_one_number_of_rows_is_rejected_in_one_line() -> None:
    model = chain(
        layers.Flatten(), layers.Dense(1), layers.Lambda(lambda x: x[:ROWS] + 0 * _all(x))
    )
    with pytest.raises(ExportError, match=r"cannot compute 4 rows: .*assume how many") as told:
        export(model)
    assert "\n" not in str(told.value)


def _all(x: Any) -> Any:
    return keras.ops.reshape(x, (ROWS, 1))


def test_loss_weights_of_only_some_outputs_are_rejected_in_one_line() -> None:
    model = compiled(both(), ["sparse_categorical_crossentropy", "mse"], loss_weights={"age": 0.5})
    with pytest.raises(ExportError, match="loss_weights: none for output 'kind': give all or none"):
        export(model)


def test_weights_with_nan_are_named() -> None:
    model = chain(layers.Flatten(), layers.Dense(1, name="odd"))
    model.get_layer("odd").bias.assign([np.nan])
    with pytest.raises(ExportError, match=r"weights 'sequential.*/odd/bias' have NaN or inf"):
        export(model)


class Doubled(keras.Model):  # type: ignore[misc]
    """Model with another loss than the compiled one."""

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        return 2 * super().compute_loss(*arguments, **options)


class Stepped(keras.Model):  # type: ignore[misc]
    """Model with a custom training step."""

    def train_step(self, data: Any) -> Any:
        return {"loss": self.compute_loss(*data)}


@pytest.mark.parametrize(("kind", "method"), [(Doubled, "compute_loss"), (Stepped, "train_step")])
def test_a_custom_train_step_or_compute_loss_is_rejected(kind: Any, method: str) -> None:
    x = keras.Input((4,), name="x")
    model = compiled(kind(x, layers.Dense(1)(x)))
    with pytest.raises(ExportError, match=f"has a {method} of its own .* devices would not run"):
        export(model)
    export(compiled(keras.Model(model.inputs, model.outputs)))


@pytest.mark.parametrize("option", ["classes", "metrics", "train", "personal"])
def test_a_text_in_place_of_a_list_is_rejected(option: str) -> None:
    with pytest.raises(ExportError, match=rf"{option}='f1': give a list, \['f1'\]"):
        export(chain(layers.Flatten(), layers.Dense(1)), **{option: "f1"})


def test_class_weights_in_a_list_are_rejected() -> None:
    model = chain(layers.Flatten(), layers.Dense(1, activation="sigmoid"))
    with pytest.raises(ExportError, match="give a weight for each class"):
        export(model, class_weight=[1.0, 2.0])


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("columns", [1, 3])
def test_gradients_of_transposed_products_equal_tensorflow_s(
    transpose_a: bool, transpose_b: bool, columns: int
) -> None:
    rng = np.random.default_rng(8)
    shapes = [(70, 5) if transpose_a else (5, 70), (columns, 70) if transpose_b else (70, columns)]
    a, b = (tf.constant(rng.standard_normal(shape), tf.float32) for shape in shapes)
    turned = {"transpose_a": transpose_a, "transpose_b": transpose_b}

    def ours(a: Any, b: Any) -> Any:
        with tf.compat.v1.get_default_graph().gradient_override_map(OVERRIDES):
            loss = tf.reduce_sum(tf.square(tf.matmul(a, b, **turned)))
        return tf.gradients(loss, [a, b])

    with tf.GradientTape() as tape:
        tape.watch([a, b])
        loss = tf.reduce_sum(tf.square(tf.matmul(a, b, **turned)))
    for found, expected in zip(tf.function(ours)(a, b), tape.gradient(loss, [a, b]), strict=True):
        assert relative_error(found.numpy(), expected.numpy()) <= 1e-5
