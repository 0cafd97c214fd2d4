"""A fresh program is run and compared with Keras before anyone gets it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ExportError, ModelError, TrainingError, one_line
from learning.vector.parameters import F32
from models.export.backend import Tensor, hushed, keras, tf
from models.export.calling import arranged_outputs, call_model
from models.export.layers.substitutes import seeded
from models.export.layers.supported import leaves
from models.export.objective.objective import Objective, Wishes, read_objective
from models.export.variables import Variables, read_variables
from models.package.package import ModelPackage
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.program import Array, Program, row_count

#: Norm of the difference over norm of Keras's gradient. Float32 sums in another order differ by
#: about 1e-6; a wrong formula by 1e-2 and more.
TOLERANCE = 1e-4
_DRAWS = 3


class Reference:
    """A Keras model as the program sees it: a function of θ, the personal and the frozen part.

    Keras's own layers, except that random ones take the program's random numbers.

    Attributes:
        whole: θ of version 0 and the initial personal part.

    Args:
        model: that was exported.
        package: made of it.
        objective: None reads the compiled one.
        variables: None reads them.
    """

    def __init__(
        self,
        model: Any,
        package: ModelPackage,
        objective: Objective | None = None,
        variables: Variables | None = None,
    ) -> None:
        self._model = model
        self._package = package
        self._spec = package.spec
        self._objective = objective or read_objective(model, package.spec.inputs, Wishes())
        self._variables = variables or read_variables(model)
        self.whole = package.whole(package.initial)

    def gradient(
        self, theta: F32, rows: dict[str, Array], seed: int = 0
    ) -> tuple[float, F32, list[Array]]:
        """Mean loss, what the program calls its gradient, and the outputs, by a gradient tape."""
        parts = self._parts(theta)
        learned = self._variables.learned
        stepped = [parts[id(variable)] for spec, variable in learned if not spec.tracked]
        with seeded(leaves(self._model), tf.constant(seed)), tf.GradientTape() as tape:
            tape.watch(stepped)
            outputs, after = self._call(parts, rows, training=True)
            loss = self._loss(rows, outputs)
        found = iter(tape.gradient(loss, stepped, unconnected_gradients="zero"))
        pieces = [
            parts[id(variable)] - after[id(variable)] if spec.tracked else next(found)
            for spec, variable in learned
        ]
        dense = [np.asarray(tf.convert_to_tensor(piece)).reshape(-1) for piece in pieces]
        return float(loss), np.concatenate(dense), [np.asarray(output) for output in outputs]

    def loss(self, theta: F32, rows: dict[str, Array]) -> float:
        """Mean loss, not in training."""
        outputs, _ = self._call(self._parts(theta), rows, training=False)
        return float(self._loss(rows, outputs))

    def outputs(self, theta: F32, rows: dict[str, Array]) -> list[Array]:
        """What Keras predicts, not in training, in the program's shapes."""
        found, _ = self._call(self._parts(theta), rows, training=False)
        return [
            np.asarray(output).reshape(len(output), *spec.shape)
            for output, spec in zip(found, self._spec.outputs, strict=True)
        ]

    def _parts(self, theta: F32) -> dict[int, Tensor]:
        whole = theta if theta.size == self._spec.whole_size else self._package.whole(theta)
        return {
            key: tf.constant(value)
            for key, value in self._variables.by_id(whole, self._package.frozen, _split).items()
        }

    def _call(
        self, parts: dict[int, Tensor], rows: dict[str, Array], training: bool
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        ordered = [tf.constant(rows[tensor.name]) for tensor in self._spec.inputs]
        with _keras_own(f"{row_count(rows)} rows", "does a layer assume how many rows there are?"):
            return call_model(self._model, parts, ordered, training=training)

    def _loss(self, rows: dict[str, Array], outputs: list[Tensor]) -> Tensor:
        columns = {name: tf.constant(array) for name, array in rows.items()}
        objective = self._objective
        if not objective.is_keras:
            named = {
                spec.name: output for spec, output in zip(objective.outputs, outputs, strict=True)
            }
            return tf.reduce_mean(objective.loss(columns, named))
        labels = objective.keras_targets(columns, outputs)
        weights = objective.keras_weights(columns)
        with _keras_own("the loss", "do the arguments of compile() fit the model's outputs?"):
            return self._model.compute_loss(
                y=arranged_outputs(self._model, labels),
                y_pred=arranged_outputs(self._model, outputs),
                sample_weight=weights and arranged_outputs(self._model, weights),
            )


@contextlib.contextmanager
def _keras_own(what: str, question: str) -> Iterator[None]:
    """Says in one line what Keras itself cannot compute."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # layers of a user's own raise what they like
        raise ExportError(
            f"Keras itself cannot compute {what}: {type(error).__name__}: {one_line(error, 2)}: "
            f"{question}"
        ) from error


def _split(vector: F32, shapes: list[tuple[int, ...]]) -> list[Array]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]


def verify(model: Any, package: ModelPackage, objective: Objective, variables: Variables) -> None:
    """Runs all signatures on random rows and compares what they return with Keras.

    Raises:
        ExportError: the program does not load, or computes something else than Keras.
    """
    reference = Reference(model, package, objective, variables)
    sizes = package.spec.batch_sizes
    # The last one is half a batch, so that padding is computed too.
    counts = [*sizes, *([sizes[0] // 2] if sizes[0] > 1 else [])]
    try:
        with hushed():  # the interpreter announces its delegates, TensorFlow's its retirement
            program = Program(package.program, package.spec, frozen=package.frozen)
            for count in counts:
                _compare_any(model, program, reference, variables, count)
    except ExportError:
        raise
    except (ModelError, TrainingError) as error:
        raise ExportError(f"the converted program does not run: {error}") from error


def _compare_any(
    model: Any, program: Program, reference: Reference, variables: Variables, count: int
) -> None:
    """Some draws of `count` rows, of which one must agree.

    Where activations are all but 0, as in a deep network of random weights, rounding decides on
    which side of a ReLU's kink they are; a wrong formula disagrees for all rows.
    """
    for seed in range(_DRAWS):
        rows = _telling_rows(model, program.spec, np.random.default_rng(seed), count)
        try:
            _compare(program, reference, variables, rows)
        except ExportError:
            if seed == _DRAWS - 1:
                raise
        else:
            return


def _compare(
    program: Program, reference: Reference, variables: Variables, rows: dict[str, Array]
) -> None:
    spec, count, whole = program.spec, row_count(rows), reference.whole
    got, sums = program.gradient(whole, rows), program.evaluate(whole, rows)
    loss, gradient, _ = reference.gradient(whole, rows)
    # Random layers do nothing in evaluation, and BatchNormalization uses its averages; any other
    # difference is no model's business.
    quiet = reference.loss(whole, rows) if spec.stochastic or spec.tracked else loss
    if not (np.isfinite(loss) and np.isfinite(gradient).all()):
        raise ExportError(
            f"Keras itself finds a loss of {loss} for {count} random rows, or a gradient that is "
            "not finite: are weights very large, or does a layer divide by what may be 0?"
        )
    difference = relative_error(got.vector, gradient)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"for {count} rows the program's gradient differs from Keras's by {difference:.1e} "
            f"(limit {TOLERANCE}): {_worst(variables, got.vector, gradient)}. "
            "Does a layer of your own behave differently in training, draw random numbers, compute "
            "across rows, or expect inputs far from 0 and 1?"
        )
    for where, total, expected in (("gradient", got.loss, loss), ("evaluate", sums.loss, quiet)):
        if not abs(total / count - expected) <= TOLERANCE * max(1.0, abs(expected)):
            raise ExportError(
                f"for {count} rows {where} returns a mean loss of {total / count:.6g}, "
                f"Keras {expected:.6g}: does a layer of your own behave differently in training?"
            )
    predicted = program.predict(whole, rows)
    for output, wanted in zip(spec.outputs, reference.outputs(whole, rows), strict=True):
        off = relative_error(predicted[output.name], wanted)
        if not off <= TOLERANCE:
            raise ExportError(
                f"for {count} rows {output.name!r} differs from Keras's by {off:.1e} "
                f"(limit {TOLERANCE})"
            )


def _telling_rows(
    model: Any, spec: ModelSpec, rng: np.random.Generator, count: int
) -> dict[str, Array]:
    """Random rows in which what a model's layers look for does occur: ids, masks, a scale."""
    layers = list(leaves(model))
    tables = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    rows = random_batch(spec, rng, count, ids=min(tables, default=2))
    numbers = [tensor for tensor in spec.inputs if tensor.dtype == "float32"]
    for layer in layers:
        for tensor in numbers:
            values = rows[tensor.name]
            if isinstance(layer, keras.layers.Rescaling) and np.ndim(layer.scale) == 0:
                # What it makes of them is around 0, as of the readings or pixels it is for.
                values[:] = (values - np.float32(layer.offset)) / np.float32(layer.scale)
            if isinstance(layer, keras.layers.Masking) and len(tensor.shape) > 1:
                # Every other sequence is one third shorter than it could be.
                steps = tensor.shape[0]
                values[1::2, steps - steps // 3 :] = layer.mask_value
    return rows


def outputs_differ_by(model: Any, spec: ModelSpec, one: Reference, other: Reference) -> float:
    """How much the predictions of two references differ: norm over norm, of the worst output."""
    rows = _telling_rows(model, spec, np.random.default_rng(0), 64)
    found = [reference.outputs(reference.whole, rows) for reference in (one, other)]
    return max(relative_error(*pair) for pair in zip(*found, strict=True))


def random_batch(
    spec: ModelSpec, rng: np.random.Generator, size: int | None = None, ids: int = 2
) -> dict[str, NDArray[Any]]:
    """Rows that fit the spec, one batch unless told: numbers around 0, classes at random.

    Whole numbers of an input are below `ids`; those along an axis begin with one above 0, which
    many a model takes for "nothing here".
    """
    count = size or spec.batch_size
    rows = {tensor.name: _random(tensor, count, ids, rng) for tensor in spec.inputs}
    for tensor in spec.inputs:
        if tensor.dtype == "int32" and tensor.shape:
            rows[tensor.name][..., 0] = np.maximum(rows[tensor.name][..., 0], 1)
    several = len(spec.targets) > 1
    for number, target in enumerate(spec.targets):
        # A target with all the output's axes is 0 or 1; with one axis less it picks a class.
        output = spec.outputs[number].shape
        pair = spec.loss == "contrastive"
        classes = output[-1] if len(output) > len(target.shape) and not pair else 2
        values = _random(target, count, classes, rng)
        name = spec.loss.split("; ")[number].split(": ")[1] if several else spec.loss
        if name == "categorical_crossentropy":  # probabilities, as its gradient in Keras assumes
            values = np.exp(values)
            values /= values.sum(-1, keepdims=True)
        rows[target.name] = values
    return rows


def relative_error(got: Array, expected: Array) -> float:
    """|got - expected| / |expected| (norms; of |got| alone where nothing is expected)."""
    scale = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - expected)) / (scale or 1.0)


def _random(tensor: TensorSpec, rows: int, classes: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (rows, *tensor.shape)
    if tensor.dtype == "int32":
        return rng.integers(0, classes, shape, dtype=np.int32)
    return rng.standard_normal(shape).astype(np.float32)


def _worst(variables: Variables, got: F32, expected: F32) -> str:
    """The tensor that differs most."""
    differences, start = {}, 0
    for spec, _ in variables.learned:
        place = slice(start, start + spec.size)
        differences[spec.name] = float(np.linalg.norm(got[place] - expected[place]))
        start += spec.size
    return f"most in {max(differences, key=lambda key: differences[key])!r}"
