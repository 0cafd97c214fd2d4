"""Layers made exportable for as long as they are traced: what stands in for what TFLite lacks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from models.export import activations
from models.export.backend import Tensor, keras, tf
from models.export.randomness import Noise, random_function

_Attributes = Iterator[tuple[str, Any]]


@contextlib.contextmanager
def exportable(layers: Iterable[Any], seed: Tensor | None = None) -> Iterator[None]:
    """Layers use substitutes while it lasts, and are as they were afterwards.

    Args:
        layers: of the model, those inside wrappers too.
        seed: int32 scalar, of random layers; without one they are left alone.
    """
    noise = None if seed is None else Noise(seed)
    saved = []
    for layer in layers:
        for name, substitute in _substitutes(layer, noise):
            saved.append((layer, name, name in vars(layer), getattr(layer, name)))
            setattr(layer, name, substitute)
    try:
        yield
    finally:
        for layer, name, own, value in saved:
            if own:
                setattr(layer, name, value)
            else:
                delattr(layer, name)


def _substitutes(layer: Any, noise: Noise | None) -> _Attributes:
    for name in ("activation", "recurrent_activation"):
        if isinstance(getattr(type(layer), name, None), property):
            continue  # a recurrent layer shows its cell's
        replacement = activations.replacement(getattr(layer, name, None))
        if replacement is not None:
            yield name, replacement
    if isinstance(layer, keras.layers.RNN):
        # A loop over tensor lists has no gradient made of built-ins; all lengths are known.
        yield "unroll", True
    if isinstance(layer, keras.layers.Conv1D | keras.layers.Conv2D) and layer.groups != 1:
        yield "call", _grouped_call(layer)
    random = random_function(layer) if noise is not None else None
    if random is not None:
        yield "call", _random_call(random, layer, noise)


def _grouped_call(layer: Any) -> Callable[[Tensor], Tensor]:
    # Keras compiles these with XLA, whose gradients cannot be replaced.
    def call(inputs: Tensor) -> Tensor:
        padding = layer.padding.upper()
        if padding == "CAUSAL":
            before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            inputs, padding = tf.pad(inputs, [(0, 0), (before, 0), (0, 0)]), "VALID"
        outputs = tf.nn.convolution(
            inputs, layer.kernel, list(layer.strides), padding, dilations=list(layer.dilation_rate)
        )
        outputs = outputs + layer.bias if layer.use_bias else outputs
        return layer.activation(outputs)

    return call


def _random_call(random: Any, layer: Any, noise: Noise | None) -> Callable[..., Tensor]:
    def call(inputs: Tensor, training: bool = False) -> Tensor:
        return random(layer, noise, inputs) if training else inputs

    return call
