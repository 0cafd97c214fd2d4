"""Checks whether Keras layers can be exported, before tracing.

The checks cover what conversion would report badly or not at all. All other layers are traced,
converted and then compared with Keras: they work or are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fedge.errors import ExportError
from models.export.backend import keras
from models.export.variables import is_normalization, is_seed

#: Layer class -> what to use instead. Subclasses count too.
_REFUSED: dict[str, str] = {
    "SpectralNormalization": "use LayerNormalization",
    "Conv3D": "use Conv2D",
    "Conv3DTranspose": "use Conv2DTranspose",
    "MaxPooling3D": "use MaxPooling2D",
    "AveragePooling3D": "use AveragePooling2D",
    "Hashing": "hash when the rows are stored on the device",
    "HashedCrossing": "hash when the rows are stored on the device",
    # IntegerLookup and StringLookup.
    "IndexLookup": "look up indexes when the rows are stored on the device",
    "STFTSpectrogram": "make spectrograms when the rows are stored on the device",
    "MelSpectrogram": "make spectrograms when the rows are stored on the device",
    # Resizing, cropping, RandomFlip and the like.
    "BaseImagePreprocessingLayer": "change the images before they are stored on the device",
}


#: Prefixes of the regularizers and constraints of layers.
_KINDS = (
    *("kernel", "bias", "activity", "gamma", "beta"),
    *("recurrent", "depthwise", "pointwise", "embeddings", "alpha"),
)


def check_layers(model: Any) -> None:
    """Raises ExportError for the first layer that cannot be exported, with what to use instead."""
    for layer in leaf_layers(model):
        for check in _CHECKS:
            problem = check(layer)
            if problem:
                raise ExportError(
                    f"layer {layer.name!r} ({type(layer).__name__}) cannot be exported: {problem}"
                )


def leaf_layers(model: Any) -> Iterator[Any]:
    """Returns every layer once, including those in models and wrappers; no models."""
    seen: set[int] = set()
    for layer in model.layers:
        # Keras has no public way to the layers inside a wrapper (TimeDistributed, RNN, attention).
        for part in (
            leaf_layers(layer) if isinstance(layer, keras.Model) else layer._flatten_layers()
        ):
            if id(part) not in seen and not isinstance(part, keras.Model):
                seen.add(id(part))
                yield part


def _refused_class(layer: Any) -> str | None:
    for base in type(layer).__mro__:
        if base.__module__.startswith("keras.") and base.__name__ in _REFUSED:
            return _REFUSED[base.__name__]
    return None


def _dtype(layer: Any) -> str | None:
    policy = layer.dtype_policy
    if policy.compute_dtype != "float32" or policy.variable_dtype != "float32":
        return f"it computes in {policy.name}; programs are float32: leave dtype at its default"
    return None


def _hidden_state(layer: Any) -> str | None:
    if isinstance(layer, keras.layers.BatchNormalization) or is_normalization(layer):
        return None
    # Inner layers are checked themselves; state of a frozen layer is frozen with it.
    inside = {id(v) for part in layer._flatten_layers()[1:] for v in part.non_trainable_variables}
    own = [v for v in layer.non_trainable_variables if id(v) not in inside]
    state = [v.path for v in own if not is_seed(v)] if layer.trainable else []
    if not state:
        return None
    return (
        f"it keeps state outside its trainable weights ({', '.join(state)}): freeze the layer "
        "(trainable=False), or make what never changes a NumPy array"
    )


def _batch_normalization(layer: Any) -> str | None:
    if not isinstance(layer, keras.layers.BatchNormalization):
        return None
    if getattr(layer, "renorm", False):
        return "use renorm=False"
    return "use synchronized=False" if getattr(layer, "synchronized", False) else None


def _normalization(layer: Any) -> str | None:
    if not is_normalization(layer) or layer.input_mean is not None:
        return None
    if np.any(layer.adapt_mean) or np.any(np.asarray(layer.adapt_variance) != 1):
        return None
    return "it has no mean and variance: call its adapt(rows), or give mean=... and variance=..."


def _recurrent(layer: Any) -> str | None:
    if getattr(layer, "stateful", False):
        return "it keeps state between batches: use stateful=False"
    if hasattr(layer, "recurrent_dropout") and (layer.dropout or layer.recurrent_dropout):
        return "no dropout inside cells: use a Dropout layer before or after it"
    return None


def _attention(layer: Any) -> str | None:
    if isinstance(layer, keras.layers.Attention) and layer.dropout:  # AdditiveAttention too
        return "no dropout of attention scores: use MultiHeadAttention, or a Dropout layer after it"
    return None


def _up_sampling(layer: Any) -> str | None:
    if getattr(layer, "interpolation", "nearest") != "nearest":
        return f"interpolation={layer.interpolation!r}: use 'nearest', or Conv2DTranspose"
    return None


def _regularizer(layer: Any) -> str | None:
    # A penalty is added to the loss by Keras's training loop, not by the model.
    for name in _KINDS:
        if getattr(layer, f"{name}_regularizer", None) is not None:
            return (
                f"{name}_regularizer would be ignored: remove it (training.proximal_mu pulls to "
                "the weights that were sent)"
            )
    return None


def _constraint(layer: Any) -> str | None:
    # Keras's optimizer projects weights after its step; devices step θ as a whole.
    for name in _KINDS:
        if layer.trainable and getattr(layer, f"{name}_constraint", None) is not None:
            return f"{name}_constraint would be ignored: remove it, or compute it in the layer"
    return None


def _channels_first(layer: Any) -> str | None:
    if getattr(layer, "data_format", None) == "channels_first":
        return "use data_format='channels_last'"
    return None


def _convolution(layer: Any) -> str | None:
    dilation, strides = getattr(layer, "dilation_rate", 1), getattr(layer, "strides", 1)
    if dilation not in (1, (1,), (1, 1)) and "Transpose" in type(layer).__name__:
        return "use dilation_rate=1"
    if dilation not in (1, (1,), (1, 1)) and strides not in (1, (1,), (1, 1)):
        return "use strides or dilation_rate, not both"
    return None


_CHECKS: tuple[Callable[[Any], str | None], ...] = (
    _refused_class,
    _dtype,
    _regularizer,
    _constraint,
    _hidden_state,
    _batch_normalization,
    _normalization,
    _channels_first,
    _convolution,
    _recurrent,
    _attention,
    _up_sampling,
)
