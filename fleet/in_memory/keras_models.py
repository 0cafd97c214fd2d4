"""Keras models in and out: the only file of `fleet` that imports `models.export`, when called."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from learning.vector.parameters import F32
from models.package.package import ModelPackage

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


def is_keras_model(model: Any) -> bool:
    """Whether something is a Keras model, without importing Keras."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


def package_of(
    model: Any, batch_size: int | Sequence[int], options: Mapping[str, Any]
) -> ModelPackage:
    """Returns a compiled Keras model as a package; see `models.export.exporter.export_model`.

    Raises:
        ExportError: it cannot become a program.
    """
    from models.export.exporter import export_model

    name = _NOT_A_NAME.sub("_", str(model.name)).strip("_.-")[:64] or "model"
    return export_model(model, **{"name": name, "batch_size": batch_size, **options})


def keras_model(package: ModelPackage, theta: F32) -> Any:
    """Returns the Keras model of a package with the weights θ, compiled as it was exported.

    Raises:
        ExportError: the package does not describe its model, or TensorFlow is missing.
    """
    from models.export.release.architecture import assign_weights, rebuild

    model = rebuild(package)
    assign_weights(model, package, theta)
    return model
