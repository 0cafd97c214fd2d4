"""Losses per row, as those of Keras and a few that Keras leaves to its users.

Keras reduces over the batch inside its losses; a program needs one number per row, because rows of
padding count 0 and sums of agents must add. So the losses are written out here, each checked
against Keras's own by the tests. All results are float32 of shape (rows,).
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
    """What is minimised at one output.

    Attributes:
        name: Keras's name of the loss.
        target_shape: of one row.
        target_dtype: int32 for classification, float32 for regression.
        output_shape: of one row of what `predict` returns (a lone axis of 1 is dropped for
            regression and binary classification, so that it has the target's shape).
        per_row: of target and output.
        from_logits: whether the output is one of logits, not of probabilities.
    """

    name: str
    target_shape: tuple[int, ...]
    target_dtype: Dtype
    output_shape: tuple[int, ...]
    per_row: PerRow
    from_logits: bool = False

    @property
    def classes(self) -> int:
        """How many classes a row can be of; 0 for regression and several yes-or-no questions."""
        if self.name in (SPARSE, CATEGORICAL):
            return self.output_shape[-1]
        return 2 if self.name == BINARY and not self.output_shape else 0


def output_loss(name: str, options: Mapping[str, Any], shape: tuple[int, ...]) -> OutputLoss:
    """The loss of an output of `shape` (of one row).

    Raises:
        ExportError: programs do not know it, or it does not fit the shape; says what to use.
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
    """max(0, |a-p|² - |a-n|² + margin) of the embeddings of an anchor, one like it, one unlike.

    Schroff et al. 2015 (FaceNet), arXiv 1503.03832, equation 3. For a model whose three outputs
    are those embeddings, in this order; it needs no target.
    """

    margin: float = 0.2
    name = "triplet"

    def loss(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """Per row."""
        del target
        like, unlike = self._distances(outputs)
        return tf.nn.relu(like - unlike + self.margin)

    def right(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """1 where the anchor is nearer to the one that is like it."""
        del target
        like, unlike = self._distances(outputs)
        return tf.cast(like < unlike, tf.float32)

    def _distances(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        anchor, positive, negative = outputs
        return _square_distance(anchor, positive), _square_distance(anchor, negative)


@dataclass(frozen=True)
class Contrastive:
    """½·D² for a pair that is alike, ½·max(0, margin - D)² for one that is not.

    D is the distance of the two embeddings. Hadsell, Chopra and LeCun 2006, Dimensionality
    reduction by learning an invariant mapping, equation 4 (whose Y is 1 for unlike pairs; here the
    target is 1 for a pair that is alike). For a model whose two outputs are the embeddings.
    """

    margin: float = 1.0
    name = "contrastive"

    def loss(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """Per row."""
        alike = tf.cast(target, tf.float32)
        square = _square_distance(*outputs)
        short = tf.nn.relu(self.margin - self._root(square))
        return 0.5 * (alike * square + (1 - alike) * short * short)

    def right(self, outputs: list[Tensor], target: Tensor | None) -> Tensor:
        """1 where half the margin tells alike from unlike rightly."""
        near = tf.cast(_square_distance(*outputs) < (0.5 * self.margin) ** 2, tf.int32)
        return tf.cast(tf.equal(near, target), tf.float32)

    def _root(self, square: Tensor) -> Tensor:
        # The root's slope at 0 is infinite: equal embeddings would make the gradient NaN.
        return tf.sqrt(tf.maximum(square, 1e-12))


def _square_distance(left: Tensor, right: Tensor) -> Tensor:
    return tf.reduce_sum(tf.square(left - right), list(range(1, len(left.shape))))


def _regression(name: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> OutputLoss:
    delta = float(options.get("delta", 1.0))
    apart: dict[str, Callable[[Tensor], _Apart]] = {
        "mean_squared_error": lambda error: _Apart(tf.square(error), error, 2.0),
        "mean_absolute_error": lambda error: _Apart(tf.abs(error), tf.sign(error)),
        "huber": lambda error: _huber(error, delta),
        # log(cosh(e)) that overflows nowhere.
        "log_cosh": lambda error: _Apart(
            tf.abs(error) + _log1p_exp(-2.0 * tf.abs(error)) - math.log(2.0), tf.tanh(error)
        ),
    }
    row = row_shape(shape)
    return OutputLoss(
        name, row, "float32", row, lambda y, p: _mean_per_row(p, lambda p: apart[name](p - y))
    )


def _huber(error: Tensor, delta: float) -> _Apart:
    # Huber 1964: quadratic up to delta, linear beyond.
    size = tf.abs(error)
    inner = tf.minimum(size, delta)
    return _Apart(inner * (size - 0.5 * inner), tf.clip_by_value(error, -delta, delta))


def _classes(name: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> OutputLoss:
    """Cross-entropy between classes; the target is a class index, or a probability per class."""
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
            return _mean_per_row(logits, lambda z: _entropy_of_classes(z, wanted))
        # Keras makes every row sum to 1: before it clips, and in the sparse loss afterwards.
        share = output if name == SPARSE else _shares(output)
        share = tf.clip_by_value(share, _EPSILON, 1 - _EPSILON)
        logarithm = tf.math.log(_shares(share) if name == SPARSE else share)
        return row_mean(-tf.reduce_sum(wanted * logarithm, -1))

    if name == SPARSE:
        return OutputLoss(name, shape[:-1], "int32", shape, loss, from_logits)
    return OutputLoss(name, shape, "float32", shape, loss, from_logits)


def _shares(output: Tensor) -> Tensor:
    return output / tf.reduce_sum(output, -1, keepdims=True)


def _entropy_of_classes(z: Tensor, wanted: Tensor) -> _Apart:
    """-Σ y·log(softmax(z)) over the last axis.

    Its slope is softmax(z) - y, as in TensorFlow's kernel: also where y does not sum to 1.
    """
    shifted = z - tf.reduce_max(z, -1, keepdims=True)
    raised = tf.exp(shifted)
    total = tf.reduce_sum(raised, -1, keepdims=True)
    values = -tf.reduce_sum(wanted * (shifted - tf.math.log(total)), -1)
    return _Apart(values, raised * (1 / total) - wanted)


def _binary(shape: tuple[int, ...], options: Mapping[str, Any]) -> OutputLoss:
    from_logits = bool(options.get("from_logits", False))
    smoothing = float(options.get("label_smoothing", 0.0))

    def loss(target: Tensor, output: Tensor) -> Tensor:
        wanted = tf.cast(target, tf.float32) * (1 - smoothing) + 0.5 * smoothing
        logits = output if from_logits else _logits(output, "Sigmoid")
        if logits is None:
            p = tf.clip_by_value(output, _EPSILON, 1 - _EPSILON)
            return row_mean(-wanted * tf.math.log(p) - (1 - wanted) * tf.math.log(1 - p))
        yes = tf.sigmoid(logits) if from_logits else output
        return _mean_per_row(logits, lambda z: _entropy_of_yes(z, yes, wanted))

    row = row_shape(shape)
    return OutputLoss(BINARY, row, "int32", row, loss, from_logits)


def _entropy_of_yes(z: Tensor, yes: Tensor, wanted: Tensor) -> _Apart:
    """-y·log(p) - (1 - y)·log(1 - p) of p = sigmoid(z), which is `yes`."""
    # max(z, 0) - z·y + log(1 + exp(-|z|)): never overflows.
    return _Apart(tf.nn.relu(z) - z * wanted + _log1p_exp(-tf.abs(z)), yes - wanted)


def _log1p_exp(z: Tensor) -> Tensor:
    return tf.math.log(1 + tf.exp(z))


def _logits(output: Tensor, activation: str) -> Tensor | None:
    """What went into the last activation, which gives a stabler loss (Keras does the same)."""
    # A target without axes was compared with a reshaped output: look through the reshape.
    if tf.executing_eagerly():
        return None  # a number is all there is
    op = output.op
    if op.type == "Reshape" and op.inputs[0].op.type == activation:
        return tf.reshape(op.inputs[0].op.inputs[0], output.shape)
    return op.inputs[0] if op.type == activation else None


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without a last axis of 1."""
    # Dense(1) gives (rows, 1) and its target is one number per row: compared as they are, they
    # would broadcast to (rows, rows).
    return shape[:-1] if shape and shape[-1] == 1 else shape


@dataclass(frozen=True)
class _Apart:
    """A loss before it is averaged.

    Attributes:
        values: of each number of a row, or of each place of a row that has a class.
        slope: by what the loss is of, in its shape; times `factor`.
        factor: the same for all.
    """

    values: Tensor
    slope: Tensor
    factor: float = 1.0


def _mean_per_row(output: Tensor, apart: Callable[[Tensor], _Apart]) -> Tensor:
    """The mean over each row, differentiated by the slopes that are known.

    The chain rule would take two or three times as many operators, each of which costs a small
    model as much as one of its layers, and a large output as much time as its layer.
    """

    def mean(z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        found = apart(z)
        factor = found.factor / prod(found.values.shape[1:])

        def gradient(dy: Tensor) -> Tensor:
            rows = dy if factor == 1 else dy * factor
            return found.slope * tf.reshape(rows, [-1, *(1 for _ in z.shape[1:])])

        return row_mean(found.values), gradient

    return tf.custom_gradient(mean)(output)


def row_mean(values: Tensor) -> Tensor:
    """Mean over every axis but the first."""
    return tf.reduce_mean(values, list(range(1, len(values.shape)))) if values.shape[1:] else values
