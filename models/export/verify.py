"""A fresh program is run and compared with Keras before anyone gets it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ExportError, ModelError, TrainingError
from models.export.backend import Tensor, hushed, tf
from models.export.layers import leaves
from models.export.randomness import random_function
from models.export.substitutes import exportable
from models.package import ModelPackage
from models.parameters import F32
from models.program import Program
from models.spec import ModelSpec, TensorSpec

#: Norm of the difference over norm of Keras's gradient. Float32 sums in another order differ by
#: about 1e-6; a wrong formula by 1e-2 and more.
TOLERANCE = 1e-4


def verify(model: Any, package: ModelPackage) -> None:
    """Runs all three signatures once on random rows and compares loss and gradient with Keras's.

    Raises:
        ExportError: the program does not load, or computes something else than Keras.
    """
    spec = package.spec
    inputs, target = random_batch(spec, np.random.default_rng(0))
    try:
        with hushed():  # the interpreter announces its delegates, TensorFlow's its retirement
            program = Program(package.program, spec)
            got = program.gradient(package.initial, inputs, target)
            sums = program.evaluate(package.initial, inputs, target)
            program.predict(package.initial, inputs)
    except (ModelError, TrainingError) as error:
        raise ExportError(f"the converted program does not run: {error}") from error
    loss, gradient = keras_gradient(model, spec, inputs, target)
    # Random layers do nothing in evaluation; any other difference is no model's business.
    quiet = keras_loss(model, spec, inputs, target) if spec.stochastic else loss
    difference = relative_error(got.vector, gradient)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the program's gradient differs from Keras's by {difference:.1e} (limit {TOLERANCE}): "
            f"{_worst(spec, got.vector, gradient)}. Does a layer behave differently in training?"
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


def random_batch(
    spec: ModelSpec, rng: np.random.Generator
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """One batch of inputs and target that fit the spec: numbers around 0, classes at random."""
    rows = spec.batch_size
    inputs = {t.name: _random(t, rows, 2, rng) for t in spec.inputs}
    # A target with all the output's axes is 0 or 1; with one axis less it picks a class.
    output = spec.outputs[0].shape
    classes = output[-1] if len(output) > len(spec.target.shape) else 2
    target = _random(spec.target, rows, classes, rng)
    if spec.loss == "categorical_crossentropy":  # probabilities, as its gradient in Keras assumes
        target = np.exp(target)
        target /= target.sum(-1, keepdims=True)
    return inputs, target


def keras_gradient(
    model: Any,
    spec: ModelSpec,
    inputs: dict[str, NDArray[Any]],
    target: NDArray[Any],
    seed: int = 0,
) -> tuple[float, F32]:
    """Mean loss, and its gradient as a vector like θ, by Keras and a gradient tape.

    Keras's own layers, except that random ones take the program's random numbers.
    """
    random = [layer for layer in leaves(model) if random_function(layer)]
    with exportable(random, tf.constant(seed)), tf.GradientTape() as tape:
        loss = _loss(model, spec, inputs, target, training=True)
    variables = [variable.value for variable in model.trainable_variables]
    gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
    return float(loss), spec.layout.flatten(
        [np.asarray(tf.convert_to_tensor(g)) for g in gradients]
    )


def keras_loss(
    model: Any, spec: ModelSpec, inputs: dict[str, NDArray[Any]], target: NDArray[Any]
) -> float:
    """Mean loss by Keras, not in training."""
    return float(_loss(model, spec, inputs, target, training=False))


def _loss(
    model: Any,
    spec: ModelSpec,
    inputs: dict[str, NDArray[Any]],
    target: NDArray[Any],
    training: bool,
) -> Tensor:
    ordered = [tf.constant(inputs[tensor.name]) for tensor in spec.inputs]
    output = model(ordered[0] if len(ordered) == 1 else ordered, training=training)
    # A target of one number per row has the axis that Keras's output has, so that nothing
    # broadcasts.
    labels = target[:, None] if spec.target.shape == () and output.shape[1:] == (1,) else target
    return model.compute_loss(y=tf.constant(labels), y_pred=output)


def relative_error(got: F32, expected: F32) -> float:
    """|got - expected| / |expected| (norms; of |got| alone where nothing is expected)."""
    scale = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - expected)) / (scale or 1.0)


def _random(tensor: TensorSpec, rows: int, classes: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (rows, *tensor.shape)
    if tensor.dtype == "int32":
        return rng.integers(0, classes, shape, dtype=np.int32)
    return rng.standard_normal(shape).astype(np.float32)


def _worst(spec: ModelSpec, got: F32, expected: F32) -> str:
    """The tensor that differs most."""
    errors = {
        parameter.name: relative_error(got[place], expected[place])
        for parameter, place in spec.layout.slices()
    }
    name = max(errors, key=lambda key: errors[key])
    return f"most in {name!r} ({errors[name]:.1e})"
