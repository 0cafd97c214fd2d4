"""Which Keras layers can be exported, checked before anything is traced.

The refusals here are those that conversion would report badly or not at all. Layers that nobody
thought of are traced, converted and then compared with Keras, so they either work or are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from models.errors import ExportError
from models.export.backend import keras

_RECURRENT = "use Conv1D layers over the time axis"

#: Layer class -> what to use instead. Subclasses count too.
_REFUSED: dict[str, str] = {
    "BatchNormalization": "its moving averages are no weights that an update could carry; "
    "use LayerNormalization or GroupNormalization",
    "Normalization": "give mean and std of the input to export_model instead",
    "SpectralNormalization": "use LayerNormalization",
    "Dropout": "programs have no random numbers: leave it out",
    "SpatialDropout1D": "programs have no random numbers: leave it out",
    "SpatialDropout2D": "programs have no random numbers: leave it out",
    "GaussianDropout": "programs have no random numbers: leave it out",
    "GaussianNoise": "programs have no random numbers: leave it out",
    "AlphaDropout": "programs have no random numbers: leave it out",
    "DepthwiseConv1D": "use Conv1D",
    "DepthwiseConv2D": "use Conv2D",
    "SeparableConv1D": "use Conv1D",
    "SeparableConv2D": "use Conv2D",
    "Conv3D": "use Conv2D",
    "Conv3DTranspose": "use Conv2DTranspose",
    "MaxPooling3D": "use MaxPooling2D",
    "AveragePooling3D": "use AveragePooling2D",
    "Embedding": "feed one-hot or hashed features to a Dense layer",
    "RNN": _RECURRENT,
    "ConvLSTM1D": _RECURRENT,
    "ConvLSTM2D": _RECURRENT,
    "Bidirectional": _RECURRENT,
    "UpSampling1D": "use Conv1DTranspose",
    "UpSampling2D": "use Conv2DTranspose",
    "TimeDistributed": "Dense works on the last axis of any tensor by itself; use Conv1D",
}
_POOLS = ("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D")


def check_layers(model: Any) -> None:
    """Raises ExportError for the first layer that cannot be exported, with what to use instead."""
    for layer in leaves(model):
        for check in _CHECKS:
            problem = check(layer)
            if problem:
                raise ExportError(
                    f"layer {layer.name!r} ({type(layer).__name__}) cannot be exported: {problem}"
                )


def leaves(model: Any) -> Iterator[Any]:
    """Every layer, those of nested models instead of the nested model, each once."""
    seen: set[int] = set()
    for layer in model.layers:
        for leaf in leaves(layer) if isinstance(layer, keras.Model) else [layer]:
            if id(leaf) not in seen:
                seen.add(id(leaf))
                yield leaf


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
    if not layer.trainable and layer.weights:
        return "it is frozen; all of θ is trained: set layer.trainable = True"
    state = [variable.path for variable in layer.non_trainable_variables]
    return f"it keeps state outside its trainable weights ({', '.join(state)})" if state else None


def _regularizer(layer: Any) -> str | None:
    # A penalty is added to the loss by Keras's training loop, not by the model.
    for name in ("kernel", "bias", "activity", "gamma", "beta"):
        if getattr(layer, f"{name}_regularizer", None) is not None:
            return f"{name}_regularizer would be ignored: remove it (weight decay is the trainer's)"
    return None


def _channels_first(layer: Any) -> str | None:
    if getattr(layer, "data_format", None) == "channels_first":
        return "use data_format='channels_last'"
    return None


def _convolution(layer: Any) -> str | None:
    if getattr(layer, "groups", 1) != 1 and "Conv" in type(layer).__name__:
        return "use groups=1"
    dilation, strides = getattr(layer, "dilation_rate", 1), getattr(layer, "strides", 1)
    if dilation not in (1, (1,), (1, 1)) and "Transpose" in type(layer).__name__:
        return "use dilation_rate=1"
    if dilation not in (1, (1,), (1, 1)) and strides not in (1, (1,), (1, 1)):
        return "use strides or dilation_rate, not both"
    return None


def _pooling(layer: Any) -> str | None:
    if type(layer).__name__ in _POOLS and tuple(layer.strides) != tuple(layer.pool_size):
        return f"pooling windows must not overlap: use strides={tuple(layer.pool_size)}"
    return None


_CHECKS: tuple[Callable[[Any], str | None], ...] = (
    _refused_class,
    _dtype,
    _regularizer,
    _hidden_state,
    _channels_first,
    _convolution,
    _pooling,
)
