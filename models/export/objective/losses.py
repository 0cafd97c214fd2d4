"""Losses per row: those of Keras, and losses of embeddings.

Keras reduces over the batch inside its losses; a program needs one number per row, because padding
has weight 0 and sums must add across agents. The losses are implemented here, and the tests compare
each with Keras's own. All results are float32 of shape (rows,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from fedge.errors import ExportError
from models.export.backend import Tensor, tf
from models.package.spec import Dtype

PerRow = Callable[[Tensor, Tensor], Tensor]

#: Probabilities are kept this far from 0 and 1 before a logarithm (Keras's default epsilon).
_EPSILON = 1e-7

REGRESSION = ("mean_squared_error", "mean_absolute_error", "huber", "log_cosh")
BINARY = "binary_crossentropy"
SPARSE = "sparse_categorical_crossentropy"
CATEGORICAL = "categorical_crossentropy"
_LOSS_ADVICE = {
    "crossentropy": f"name it: {SPARSE} or {BINARY}",
}


@dataclass(frozen=True)
class OutputLoss:
    """Loss of one output.

    Attributes:
        name: Keras's name of the loss.
        target_shape: shape of one row of the target.
        target_dtype: int32 for classification, float32 for regression.
        output_shape: shape of one row that `predict` returns (a last axis of 1 is dropped for
            regression and binary classification, to match the target).
        per_row: function of target and output.
        from_logits: whether the output is logits, not probabilities.
    """

    name: str
    target_shape: tuple[int, ...]
    target_dtype: Dtype
    output_shape: tuple[int, ...]
    per_row: PerRow
    from_logits: bool = False

    @property
    def classes(self) -> int:
        """Number of classes of a row; 0 for regression and for several binary labels per row."""
        if self.name in (SPARSE, CATEGORICAL):
            return self.output_shape[-1]
        return 2 if self.name == BINARY and not self.output_shape else 0


def output_loss(name: str, options: Mapping[str, Any], shape: tuple[int, ...]) -> OutputLoss:
    """Returns the loss of an output of `shape` (of one row).

    Raises:
        ExportError: programs lack the loss, or it does not fit the shape; says what to use.
    """
    if name in (SPARSE, CATEGORICAL):
        return _classes(name, shape, options)
    if name == BINARY:
        return _binary(shape, options)
    if name in REGRESSION:
        return _regression(name, shape, options)
    known = ", ".join((*REGRESSION, SPARSE, CATEGORICAL, BINARY))
    advice = _LOSS_ADVICE.get(name, f"use one of: {known}")
    raise ExportError(f"loss {name!r} cannot be exported: {advice}")


@dataclass(frozen=True)
class Triplet:
    """Triplet loss: max(0, |a-p|² - |a-n|² + margin) of anchor, positive and negative embedding.

    Schroff et al. 2015 (FaceNet), arXiv 1503.03832, equation 3. For a model whose three outputs
    are these embeddings, in this order; it needs no target.
    """

    margin: float = 0.2
    name = "triplet"

    def loss(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """Returns the loss per row."""
        del target
        near, far = self._distances(outputs)
        return tf.nn.relu(near - far + self.margin)

    def correct(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """Returns 1 where the anchor is nearer to the positive."""
        del target
        near, far = self._distances(outputs)
        return tf.cast(near < far, tf.float32)

    def _distances(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        anchor, positive, negative = outputs
        return _square_distance(anchor, positive), _square_distance(anchor, negative)


@dataclass(frozen=True)
class Contrastive:
    """Contrastive loss: ½·D² for a similar pair, ½·max(0, margin - D)² for a dissimilar one.

    D is the distance of the two embeddings. Hadsell, Chopra and LeCun 2006, Dimensionality
    reduction by learning an invariant mapping, equation 4 (whose Y is 1 for dissimilar pairs; here
    the target is 1 for a similar pair). For a model whose two outputs are the embeddings.
    """

    margin: float = 1.0
    name = "contrastive"

    def loss(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """Returns the loss per row."""
        similar = tf.cast(target, tf.float32)
        square = _square_distance(*outputs)
        short = tf.nn.relu(self.margin - self._root(square))
        return 0.5 * (similar * square + (1 - similar) * short * short)

    def correct(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """Returns 1 where comparing the distance with half the margin predicts the target."""
        near = tf.cast(_square_distance(*outputs) < (0.5 * self.margin) ** 2, tf.int32)
        return tf.cast(tf.equal(near, target), tf.float32)

    def _root(self, square: Tensor) -> Tensor:
        # The slope of the root at 0 is infinite: equal embeddings would give a gradient of NaN.
        return tf.sqrt(tf.maximum(square, 1e-12))


def _square_distance(left: Tensor, right: Tensor) -> Tensor:
    return tf.reduce_sum(tf.square(left - right), list(range(1, len(left.shape))))


def _regression(name: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> OutputLoss:
    delta = float(options.get("delta", 1.0))
    losses: dict[str, Callable[[Tensor], _ElementLosses]] = {
        "mean_squared_error": lambda error: _ElementLosses(tf.square(error), error, 2.0),
        "mean_absolute_error": lambda error: _ElementLosses(tf.abs(error), tf.sign(error)),
        "huber": lambda error: _huber(error, delta),
        # log(cosh(e)) without overflow.
        "log_cosh": lambda error: _ElementLosses(
            tf.abs(error) + _log1p_exp(-2.0 * tf.abs(error)) - math.log(2.0), tf.tanh(error)
        ),
    }
    row = row_shape(shape)
    return OutputLoss(
        name, row, "float32", row, lambda y, p: _mean_per_row(p, lambda p: losses[name](p - y))
    )


def _huber(error: Tensor, delta: float) -> _ElementLosses:
    # Huber 1964: quadratic up to delta, linear beyond.
    size = tf.abs(error)
    inner = tf.minimum(size, delta)
    return _ElementLosses(inner * (size - 0.5 * inner), tf.clip_by_value(error, -delta, delta))


def _classes(name: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> OutputLoss:
    """Returns the cross-entropy for a class index, or for a probability per class."""
    if not shape or shape[-1] < 2:
        raise ExportError(
            f"{name} needs an output of one number per class, the model's last layer gives "
            f"{shape}: for two classes and one output use {BINARY}"
        )
    from_logits = bool(options.get("from_logits", False))
    if options.get("ignore_class") is not None or options.get("axis", -1) != -1:
        raise ExportError(f"{name}: ignore_class and axis cannot be exported")
    smoothing = float(options.get("label_smoothing", 0.0))

    def loss(target: Tensor, output: Tensor) -> Tensor:
        wanted = tf.one_hot(target, shape[-1], dtype=tf.float32) if name == SPARSE else target
        if smoothing:
            wanted = wanted * (1 - smoothing) + smoothing / shape[-1]
        logits = output if from_logits else _logits(output, "Softmax")
        if logits is not None:
            return _mean_per_row(logits, lambda z: _class_entropy(z, wanted))
        # Keras normalizes every row to 1: before clipping, in the sparse loss after it.
        share = output if name == SPARSE else _shares(output)
        share = tf.clip_by_value(share, _EPSILON, 1 - _EPSILON)
        logarithm = tf.math.log(_shares(share) if name == SPARSE else share)
        return row_mean(-tf.reduce_sum(wanted * logarithm, -1))

    if name == SPARSE:
        return OutputLoss(name, shape[:-1], "int32", shape, loss, from_logits)
    return OutputLoss(name, shape, "float32", shape, loss, from_logits)


def _shares(output: Tensor) -> Tensor:
    return output / tf.reduce_sum(output, -1, keepdims=True)


def _class_entropy(z: Tensor, wanted: Tensor) -> _ElementLosses:
    """Returns -Σ y·log(softmax(z)) over the last axis.

    The slope is softmax(z) - y, as in TensorFlow's kernel, also where y does not sum to 1.
    """
    shifted = z - tf.reduce_max(z, -1, keepdims=True)
    raised = tf.exp(shifted)
    total = tf.reduce_sum(raised, -1, keepdims=True)
    values = -tf.reduce_sum(wanted * (shifted - tf.math.log(total)), -1)
    return _ElementLosses(values, raised * (1 / total) - wanted)


def _binary(shape: tuple[int, ...], options: Mapping[str, Any]) -> OutputLoss:
    from_logits = bool(options.get("from_logits", False))
    smoothing = float(options.get("label_smoothing", 0.0))

    def loss(target: Tensor, output: Tensor) -> Tensor:
        wanted = tf.cast(target, tf.float32) * (1 - smoothing) + 0.5 * smoothing
        logits = output if from_logits else _logits(output, "Sigmoid")
        if logits is None:
            p = tf.clip_by_value(output, _EPSILON, 1 - _EPSILON)
            return row_mean(-wanted * tf.math.log(p) - (1 - wanted) * tf.math.log(1 - p))
        probability = tf.sigmoid(logits) if from_logits else output
        return _mean_per_row(logits, lambda z: _binary_entropy(z, probability, wanted))

    row = row_shape(shape)
    return OutputLoss(BINARY, row, "int32", row, loss, from_logits)


def _binary_entropy(z: Tensor, probability: Tensor, wanted: Tensor) -> _ElementLosses:
    """Returns -y·log(p) - (1 - y)·log(1 - p) for p = sigmoid(z), given as `probability`."""
    # max(z, 0) - z·y + log(1 + exp(-|z|)) does not overflow.
    return _ElementLosses(tf.nn.relu(z) - z * wanted + _log1p_exp(-tf.abs(z)), probability - wanted)


def _log1p_exp(z: Tensor) -> Tensor:
    return tf.math.log(1 + tf.exp(z))


def _logits(output: Tensor, activation: str) -> Tensor | None:
    """Returns the input of the last activation, for a stable loss (as in Keras); else None."""
    # The output may be reshaped to the target's shape: look through the reshape.
    if tf.executing_eagerly():
        return None  # an eager tensor has no graph
    op = output.op
    if op.type == "Reshape" and op.inputs[0].op.type == activation:
        return tf.reshape(op.inputs[0].op.inputs[0], output.shape)
    return op.inputs[0] if op.type == activation else None


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape without a last axis of 1."""
    # Dense(1) gives (rows, 1), and its target is one number per row: without this, both would
    # broadcast to (rows, rows).
    return shape[:-1] if shape and shape[-1] == 1 else shape


@dataclass(frozen=True)
class _ElementLosses:
    """Loss of each element, before averaging over the row.

    Attributes:
        values: loss of each element of a row (of each position, for classes).
        slope: derivative with respect to the output, divided by `factor`.
        factor: common factor of all slopes.
    """

    values: Tensor
    slope: Tensor
    factor: float = 1.0


def _mean_per_row(output: Tensor, losses: Callable[[Tensor], _ElementLosses]) -> Tensor:
    """Returns the mean over each row, with a gradient from the known slopes.

    Automatic differentiation would need two or three times as many operators, each as expensive as
    a layer of a small model, or as the last layer of a model with a large output.
    """

    def mean(z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        found = losses(z)
        factor = found.factor / prod(found.values.shape[1:])

        def gradient(dy: Tensor) -> Tensor:
            rows = dy if factor == 1 else dy * factor
            return found.slope * tf.reshape(rows, [-1, *(1 for _ in z.shape[1:])])

        return row_mean(found.values), gradient

    return tf.custom_gradient(mean)(output)


def row_mean(values: Tensor) -> Tensor:
    """Returns the mean over every axis but the first."""
    return tf.reduce_mean(values, list(range(1, len(values.shape)))) if values.shape[1:] else values
