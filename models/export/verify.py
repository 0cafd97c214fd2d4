"""A fresh program is run and compared with Keras before anyone gets it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ExportError, ModelError, TrainingError
from models.export.backend import Tensor, hushed, tf
from models.export.layers import leaves
from models.export.objective import Objective, Wishes, read_objective
from models.export.substitutes import seeded
from models.export.variables import Variables, read_variables
from models.package import ModelPackage
from models.parameters import F32
from models.program import Array, Program
from models.spec import ModelSpec, TensorSpec

#: Norm of the difference over norm of Keras's gradient. Float32 sums in another order differ by
#: about 1e-6; a wrong formula by 1e-2 and more.
TOLERANCE = 1e-4


class Reference:
    """A Keras model as the program sees it: a function of θ, the personal and the frozen part.

    Keras's own layers, except that random ones take the program's random numbers.

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
        model = self._model
        ordered = [tf.constant(rows[tensor.name]) for tensor in self._spec.inputs]
        others = [
            parts.get(id(v), tf.zeros(v.shape, v.dtype)) for v in model.non_trainable_variables
        ]
        output, after = model.stateless_call(
            [parts[id(v)] for v in model.trainable_variables],
            others,
            ordered[0] if len(ordered) == 1 else ordered,
            training=training,
        )
        pairs = zip(model.non_trainable_variables, after, strict=True)
        return tf.nest.flatten(output), {id(v): value for v, value in pairs}

    def _loss(self, rows: dict[str, Array], outputs: list[Tensor]) -> Tensor:
        columns = {name: tf.constant(array) for name, array in rows.items()}
        objective = self._objective
        if not objective.is_keras:
            named = {
                spec.name: output for spec, output in zip(objective.outputs, outputs, strict=True)
            }
            return tf.reduce_mean(objective.loss(columns, named))
        labels = objective.keras_targets(columns, outputs)
        return self._model.compute_loss(
            y=labels[0] if len(labels) == 1 else labels,
            y_pred=outputs[0] if len(outputs) == 1 else outputs,
            sample_weight=objective.keras_weight(columns),
        )


def _split(vector: F32, shapes: list[tuple[int, ...]]) -> list[Array]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]


def verify(model: Any, package: ModelPackage, objective: Objective, variables: Variables) -> None:
    """Runs all three signatures once on random rows and compares loss and gradient with Keras's.

    Raises:
        ExportError: the program does not load, or computes something else than Keras.
    """
    spec, whole = package.spec, package.whole(package.initial)
    rows = random_batch(spec, np.random.default_rng(0))
    try:
        with hushed():  # the interpreter announces its delegates, TensorFlow's its retirement
            program = Program(package.program, spec, frozen=package.frozen)
            got = program.gradient(whole, rows)
            sums = program.evaluate(whole, rows)
            program.predict(whole, rows)
    except (ModelError, TrainingError) as error:
        raise ExportError(f"the converted program does not run: {error}") from error
    reference = Reference(model, package, objective, variables)
    for size in spec.batch_sizes[1:]:
        _compare(program, reference, whole, size)
    loss, gradient, _ = reference.gradient(whole, rows)
    # Random layers do nothing in evaluation, and BatchNormalization uses its averages; any other
    # difference is no model's business.
    quiet = reference.loss(whole, rows) if spec.stochastic or spec.tracked else loss
    difference = relative_error(got.vector, gradient)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the program's gradient differs from Keras's by {difference:.1e} (limit {TOLERANCE}): "
            f"{_worst(variables, got.vector, gradient)}. "
            "Does a layer behave differently in training?"
        )
    for where, total, expected in (
        ("gradient", got.sums.loss, loss),
        ("evaluate", sums.loss, quiet),
    ):
        mean = total / spec.batch_size
        if not abs(mean - expected) <= TOLERANCE * max(1.0, abs(expected)):
            raise ExportError(
                f"{where} returns a mean loss of {mean:.6g}, Keras {expected:.6g}: "
                "does the model add losses of its own?"
            )


def _compare(program: Program, reference: Reference, theta: F32, size: int) -> None:
    """Raises ExportError unless calls of so many rows give Keras's gradient."""
    rows = random_batch(program.spec, np.random.default_rng(size), size)
    try:
        got = program.gradient(theta, rows)
        program.evaluate(theta, rows)
        program.predict(theta, rows)
    except TrainingError as error:
        raise ExportError(f"the converted program does not run: {error}") from error
    difference = relative_error(got.vector, reference.gradient(theta, rows)[1])
    if not difference <= TOLERANCE:
        raise ExportError(
            f"with {size} rows the program's gradient differs from Keras's by {difference:.1e} "
            f"(limit {TOLERANCE})"
        )


def random_batch(
    spec: ModelSpec, rng: np.random.Generator, size: int | None = None
) -> dict[str, NDArray[Any]]:
    """Rows that fit the spec, one batch unless told: numbers around 0, classes at random."""
    count = size or spec.batch_size
    rows = {tensor.name: _random(tensor, count, 2, rng) for tensor in spec.inputs}
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


def relative_error(got: F32, expected: F32) -> float:
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
    errors, start = {}, 0
    for spec, _ in variables.learned:
        place = slice(start, start + spec.size)
        errors[spec.name] = relative_error(got[place], expected[place])
        start += spec.size
    name = max(errors, key=lambda key: errors[key])
    return f"most in {name!r} ({errors[name]:.1e})"
