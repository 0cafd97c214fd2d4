"""What the zoo knows about one of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.package.spec import TensorSpec


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        name: in the zoo, in configurations and on the wire.
        task: one line: what is learned from what.
        source: where architecture or task come from.
        build: the compiled Keras model; imports TensorFlow when called, and gives the same
            initial weights every time.
        inputs: what Keras does not know about the inputs: features, units, mean, std.
        classes: their names, for classification.
        batch_size: rows of one program call.
        metrics: more metrics than the compiled ones, by name.
        class_weight: what a row of each class counts in the loss.
        reconstruct: name of the input that an autoencoder is compared with.
    """

    name: str
    task: str
    source: str
    build: Callable[[], Any]
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    batch_size: int = 32
    metrics: tuple[str, ...] = ()
    class_weight: Mapping[int, float] = field(default_factory=dict)
    reconstruct: str = ""
