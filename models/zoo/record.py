"""Record of a zoo model: task, source and builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.package.spec import TensorSpec


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        name: name in the zoo, in configurations and on the wire.
        task: the prediction and its inputs, in one line.
        source: source of architecture or task.
        build: returns the compiled Keras model; imports TensorFlow when called, and gives the same
            initial weights every time.
        inputs: input specs with what Keras lacks: features, units, mean, std.
        classes: names of the classes, for classification.
        targets: target specs with what Keras lacks: names, units.
        batch_size: rows of one program call; or several, see `export_model`.
        metrics: names of metrics in addition to the compiled ones.
        class_weight: weight of a row of each class in the loss.
        reconstruct: name of the input that an autoencoder's output is compared with.
    """

    name: str
    task: str
    source: str
    build: Callable[[], Any]
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    targets: tuple[TensorSpec, ...] = ()
    batch_size: int | tuple[int, ...] = 32
    metrics: tuple[str, ...] = ()
    class_weight: Mapping[int, float] = field(default_factory=dict)
    reconstruct: str = ""
