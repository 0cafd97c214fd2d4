"""Objective of a program: its loss per row and its metrics, as functions of outputs and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from learning.vector.metrics import MetricSpec
from models.export.backend import Tensor, tf
from models.export.objective.losses import Contrastive, OutputLoss, Triplet
from models.export.objective.metrics import Metric, total
from models.package.spec import TensorSpec

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class OutputObjective:
    """Loss and metrics of one output.

    Attributes:
        output: name of the output.
        source: name of the column that the output is compared with.
        loss: before weights.
        weight: loss weight of the output.
        class_weight: weight of a row of each class in the loss; empty for 1.
        metrics: with their names in the program.
    """

    output: str
    source: str
    loss: OutputLoss
    weight: float = 1.0
    class_weight: tuple[float, ...] = ()
    metrics: tuple[Metric, ...] = ()

    def label(self, columns: Tensors) -> Tensor:
        """Returns the target in the output's shape: an input may have a last axis of 1."""
        y = columns[self.source]
        shape = (y.shape[0], *self.loss.target_shape)
        return y if tuple(y.shape) == shape else tf.reshape(y, shape)

    def per_row(self, y: Tensor, p: Tensor) -> Tensor:
        """Returns the weighted loss of each row."""
        values = self.loss.per_row(y, p)
        if self.class_weight:
            picked = tf.one_hot(y, len(self.class_weight), dtype=tf.float32)
            values *= tf.reduce_sum(picked * tf.constant(self.class_weight), -1)
        return values if self.weight == 1 else self.weight * values


@dataclass(frozen=True)
class Objective:
    """Loss and metrics of a whole model.

    Attributes:
        name: of the loss; of each output's loss where there are several outputs.
        targets: columns that the data must hold.
        outputs: that `predict` returns.
        metrics: in the order of the program's outputs.
        is_keras: whether Keras computes the same loss (`keras_targets`).
        parts: one per output; empty for a loss of embeddings.
        pair: the loss of embeddings, where the model has one.
    """

    name: str
    targets: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metrics: tuple[MetricSpec, ...]
    is_keras: bool
    parts: tuple[OutputObjective, ...] = ()
    pair: Triplet | Contrastive | None = None

    @property
    def classifies(self) -> bool:
        """Whether the first output predicts a class."""
        return bool(self.parts) and self.parts[0].loss.classes > 0

    @property
    def threshold(self) -> float:
        """Threshold of a first output of one number: above it, class 1 is predicted."""
        return 0.0 if self.parts and self.parts[0].loss.from_logits else 0.5

    def loss(self, columns: Tensors, outputs: Tensors) -> Tensor:
        """Returns the loss per row: float32, shape (rows,).

        Args:
            columns: inputs and targets by name.
            outputs: by name, in the shapes of `outputs`.
        """
        if self.pair is not None:
            return self.pair.loss(list(outputs.values()), columns.get("target"))
        losses = [part.per_row(part.label(columns), outputs[part.output]) for part in self.parts]
        return tf.add_n(losses) if len(losses) > 1 else losses[0]

    def sums(self, columns: Tensors, outputs: Tensors, weight: Tensor) -> dict[str, Tensor]:
        """Returns the sums of each metric over rows, by name; `weight` has shape (rows,)."""
        if self.pair is not None:
            correct = self.pair.correct(list(outputs.values()), columns.get("target"))
            return {"accuracy": total(self.metrics[0], correct, weight)}
        return {
            spec.name: total(spec, per_row(part.label(columns), outputs[part.output]), weight)
            for part in self.parts
            for spec, per_row in part.metrics
        }

    def keras_targets(self, columns: Tensors, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Returns the targets of each output in the shape that Keras's loss needs."""
        labels = [columns[part.source] for part in self.parts]
        # A target of one number per row gets the last axis of Keras's output, so that nothing
        # broadcasts.
        return [
            y[..., None] if len(y.shape) == len(p.shape) - 1 and p.shape[-1] == 1 else y
            for y, p in zip(labels, outputs, strict=True)
        ]

    def keras_weights(self, columns: Tensors) -> list[Tensor] | None:
        """Returns Keras's sample weights of each output for the class weights, None without any."""
        if not any(part.class_weight for part in self.parts):
            return None
        return [
            tf.gather(part.class_weight, columns[part.source])
            if part.class_weight
            else tf.ones(columns[part.source].shape[0])
            for part in self.parts
        ]
