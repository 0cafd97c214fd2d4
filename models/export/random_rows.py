"""Random rows that fit a model: for checks of its program."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.export.backend import keras
from models.export.layers.supported import leaf_layers
from models.export.variables import is_normalization
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.rows import Array


def random_batch(
    spec: ModelSpec, rng: np.random.Generator, size: int | None = None, ids: int = 2
) -> dict[str, NDArray[Any]]:
    """Returns random rows that fit the spec: normal numbers, uniform classes.

    Args:
        spec: the model's spec.
        rng: random generator.
        size: number of rows; None: one batch.
        ids: integers of an input are below this. The first along an axis is above 0, because many
            models mask 0.
    """
    count = size or spec.batch_size
    rows = {tensor.name: _random(tensor, count, ids, rng) for tensor in spec.inputs}
    for tensor in spec.inputs:
        if tensor.dtype == "int32" and tensor.shape:
            rows[tensor.name][..., 0] = np.maximum(rows[tensor.name][..., 0], 1)
    several = len(spec.targets) > 1
    for number, target in enumerate(spec.targets):
        # A target with all the output's axes is 0 or 1; with one axis less it is a class index.
        output = spec.outputs[number].shape
        pair = spec.loss == "contrastive"
        classes = output[-1] if len(output) > len(target.shape) and not pair else 2
        values = _random(target, count, classes, rng)
        name = spec.loss.split("; ")[number].split(": ")[1] if several else spec.loss
        if name == "categorical_crossentropy":  # probabilities: Keras's gradient assumes them
            values = np.exp(values)
            values /= values.sum(-1, keepdims=True)
        rows[target.name] = values
    return rows


def representative_rows(
    model: Any, spec: ModelSpec, rng: np.random.Generator, count: int
) -> dict[str, Array]:
    """Returns random rows with ids, masked steps and the scale that the model's layers expect."""
    layers = list(leaf_layers(model))
    tables = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    rows = random_batch(spec, rng, count, ids=min(tables, default=2))
    numbers = [tensor for tensor in spec.inputs if tensor.dtype == "float32"]
    for layer in layers:
        for tensor in numbers:
            values = rows[tensor.name]
            if isinstance(layer, keras.layers.Rescaling) and np.ndim(layer.scale) == 0:
                # After rescaling they are around 0, as real readings or pixels.
                values[:] = (values - np.float32(layer.offset)) / np.float32(layer.scale)
            if is_normalization(layer) and not layer.invert and _reads(layer, model, spec, tensor):
                values[:] = values * np.sqrt(layer.variance) + np.asarray(layer.mean)
            if isinstance(layer, keras.layers.Masking) and len(tensor.shape) > 1:
                # One third of every other sequence is masked.
                steps = tensor.shape[0]
                values[1::2, steps - steps // 3 :] = layer.mask_value
    return rows


def _reads(layer: Any, model: Any, spec: ModelSpec, tensor: TensorSpec) -> bool:
    """Whether the layer is called on this input of the model."""
    given = getattr(layer, "input", None)
    return given is model.inputs[spec.inputs.index(tensor)]


def _random(tensor: TensorSpec, rows: int, classes: int, rng: np.random.Generator) -> NDArray[Any]:
    shape = (rows, *tensor.shape)
    if tensor.dtype == "int32":
        return rng.integers(0, classes, shape, dtype=np.int32)
    return rng.standard_normal(shape).astype(np.float32)
