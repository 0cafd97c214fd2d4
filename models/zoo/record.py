"""What the zoo knows about one of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.spec import TensorSpec


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
    """

    name: str
    task: str
    source: str
    build: Callable[[], Any]
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    batch_size: int = 32
