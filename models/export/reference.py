"""Keras's side of a comparison with a program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedge.errors import ExportError, one_line
from learning.vector.parameters import F32
from models.export.backend import Tensor, tf
from models.export.calling import call_model, pack_outputs
from models.export.layers.substitutes import seeded
from models.export.layers.supported import leaf_layers
from models.export.objective.objective import Objective
from models.export.objective.reading import ObjectiveOptions, read_objective
from models.export.variables import Variables, read_variables
from models.package.package import ModelPackage
from models.runtime.rows import Array, row_count


class Reference:
    """Keras model as a function of the program's vector, to compare a program with.

    It uses Keras's own layers, except that random layers take the program's random numbers.

    Attributes:
        whole: initial θ, then the initial personal part.

    Args:
        model: the exported model.
        package: its package.
        objective: None reads the compiled one.
        variables: None reads them from the model.
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
        self._objective = objective or read_objective(
            model, package.spec.inputs, ObjectiveOptions()
        )
        self._variables = variables or read_variables(model)
        self.whole = package.whole(package.initial)

    def gradient(
        self, theta: F32, rows: dict[str, Array], seed: int = 0
    ) -> tuple[float, F32, list[Array]]:
        """Returns mean loss, gradient vector as the program's, and outputs, by a gradient tape."""
        parts = self._parts(theta)
        learned = self._variables.learned
        stepped = [parts[id(variable)] for spec, variable in learned if not spec.tracked]
        with seeded(leaf_layers(self._model), tf.constant(seed)), tf.GradientTape() as tape:
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
        """Returns the mean loss in inference mode."""
        outputs, _ = self._call(self._parts(theta), rows, training=False)
        return float(self._loss(rows, outputs))

    def outputs(self, theta: F32, rows: dict[str, Array]) -> list[Array]:
        """Returns the outputs in inference mode, in the program's shapes."""
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
        with _keras_errors(
            f"{row_count(rows)} rows", "does a layer assume how many rows there are?"
        ):
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
        with _keras_errors("the loss", "do the arguments of compile() fit the model's outputs?"):
            return self._model.compute_loss(
                y=pack_outputs(self._model, labels),
                y_pred=pack_outputs(self._model, outputs),
                sample_weight=weights and pack_outputs(self._model, weights),
            )


@contextlib.contextmanager
def _keras_errors(what: str, question: str) -> Iterator[None]:
    """Turns errors of Keras and of a user's layers into an ExportError of one line."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # a user's own layers may raise anything
        raise ExportError(
            f"Keras itself cannot compute {what}: {type(error).__name__}: {one_line(error, 2)}: "
            f"{question}"
        ) from error


def _split(vector: F32, shapes: list[tuple[int, ...]]) -> list[Array]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]
