"""Substitutes for layers and functions of Keras that TFLite cannot run, active during tracing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from models.export.backend import Tensor, keras, suppress_tensorflow_output, tf
from models.export.gradients.overrides import OVERRIDES
from models.export.layers import activations
from models.export.layers.im2col import convolution
from models.export.layers.randomness import Noise, call_owner, random_function
from models.export.layers.recurrent import recurrent_call

# Keras has no public name for the function by which layers and functional models normalize.
with suppress_tensorflow_output():
    from keras.src.ops import nn as keras_nn

#: What names of TensorFlow's scopes must not have; Keras makes one for each layer.
_NO_SCOPE = re.compile(r"[^A-Za-z0-9_.\\/>-]")

_Attributes = Iterator[tuple[str, Any]]


@dataclass(frozen=True, eq=False)
class Training:
    """Inputs of layers that behave differently in training.

    Attributes:
        weight: float32, shape (rows,): rows of weight 0 are padding and not part of the batch.
        seed: int32 scalar, seed of random layers; None leaves them unchanged.
    """

    weight: Tensor
    seed: Tensor | None = None


@contextlib.contextmanager
def substitute_layers(
    layers: Iterable[Any],
    training: Training | None = None,
    *,
    loops: bool = True,
    gelu: bool = True,
) -> Iterator[None]:
    """Replaces layers and functions by substitutes until the block ends.

    Args:
        layers: all layers of the model, including those in wrappers.
        training: None when the model only predicts.
        loops: whether long recurrent layers may become loops; else all are unrolled.
        gelu: whether gelu is replaced, for its gradient; the converter has an operator for it.
    """
    noise = None if training is None or training.seed is None else Noise(training.seed)
    weight = None if training is None else training.weight
    saved = []
    for layer in layers:
        for name, substitute in _substitutes(layer, noise, weight, loops, gelu):
            saved.append((layer, name, name in vars(layer), getattr(layer, name)))
            setattr(layer, name, substitute)
    try:
        with _functions(gelu):
            yield
    finally:
        for layer, name, own, value in saved:
            if own:
                setattr(layer, name, value)
            else:
                delattr(layer, name)


@contextlib.contextmanager
def _functions(gelu: bool) -> Iterator[None]:
    """Replaces functions of Keras that functional models and a user's layers call."""
    backend = keras_nn.backend.nn
    whole = backend.gelu

    def any_gelu(x: Tensor, approximate: bool = True) -> Tensor:
        return whole(x, True) if approximate else activations.gelu(tf.convert_to_tensor(x))

    found = [
        (keras_nn, "_normalize", _normalize),
        (backend, "softplus", activations.replacement(keras.activations.softplus)),
        (backend, "log_sigmoid", activations.replacement(keras.activations.log_sigmoid)),
        *([(backend, "gelu", any_gelu)] if gelu else []),
    ]
    saved = [(place, name, getattr(place, name)) for place, name, _ in found]
    try:
        for place, name, function in found:
            setattr(place, name, function)
        yield
    finally:
        for place, name, function in saved:
            setattr(place, name, function)


def _normalize(x: Any, axis: Any = -1, order: int = 2, epsilon: float | None = None) -> Tensor:
    """Normalizes as `keras.ops.normalize`, also zeros.

    Keras limits 1/|x| after computing it; for |x|² = 0 LiteRT's RSQRT gives NaN.
    """
    x = tf.convert_to_tensor(x)
    least = keras.config.epsilon() if epsilon is None else epsilon
    if order == 2:
        square = tf.reduce_sum(tf.square(x), axis, keepdims=True)
        return x * tf.math.rsqrt(tf.maximum(square, least**2))
    size = keras.ops.norm(x, ord=order, axis=axis, keepdims=True)
    return x / tf.maximum(size, least)


@contextlib.contextmanager
def seeded(layers: Iterable[Any], seed: Tensor) -> Iterator[None]:
    """Replaces random layers by ones with the program's random numbers until the block ends."""
    noise = Noise(seed)
    with contextlib.ExitStack() as stack:
        for layer in layers:
            random = random_function(layer)
            if random is not None:
                stack.callback(delattr, layer, "call")
                layer.call = _random_call(random, layer, noise)
        yield


def _substitutes(
    layer: Any, noise: Noise | None, weight: Tensor | None, loops: bool, gelu: bool
) -> _Attributes:
    if _NO_SCOPE.search(layer.name):  # Keras itself trains such a layer only without a graph
        yield "name", _NO_SCOPE.sub("_", layer.name)
    if call_owner(layer) == "BatchNormalization":
        yield "call", _batch_normalization_call(layer, weight)
    if call_owner(layer) == "Normalization":
        yield "call", _normalization_call(layer)
    for name in ("activation", "recurrent_activation"):
        if isinstance(getattr(type(layer), name, None), property):
            continue  # a recurrent layer only forwards its cell's
        replacement = activations.replacement(getattr(layer, name, None))
        if replacement is not None and (gelu or replacement is not activations.gelu):
            yield name, replacement
    if isinstance(layer, keras.layers.RNN):
        # Keras's loop over tensor lists has no gradient made of built-ins; lengths are static.
        yield "unroll", True
        if loops:
            yield "call", recurrent_call(layer, OVERRIDES)
    if call_owner(layer) == "Dense" and layer.built and layer.kernel.shape[0] == 1:
        yield "call", _dense_of_one_call(layer)
    if call_owner(layer) in ("BaseConv", "Conv1D"):
        yield "call", _convolution_call(layer)
    if call_owner(layer) == "BaseSeparableConv" and layer.padding != "causal":
        yield "call", _separable_call(layer)
    random = random_function(layer) if noise is not None else None
    if random is not None:
        yield "call", _random_call(random, layer, noise)


def _dense_of_one_call(layer: Any) -> Callable[..., Tensor]:
    # The converter of TensorFlow 2.21 fails on an input that was reshaped from (rows,) to
    # (rows, 1): it drops the axis of 1.
    def call(inputs: Tensor, training: bool | None = None) -> Tensor:
        del training
        outputs = inputs * tf.convert_to_tensor(layer.kernel)
        if layer.use_bias:
            outputs += tf.convert_to_tensor(layer.bias)
        return layer.activation(outputs) if layer.activation is not None else outputs

    return call


def _convolution_call(layer: Any) -> Callable[[Tensor], Tensor]:
    # For speed; and with groups, because Keras compiles them with XLA, whose gradients cannot be
    # replaced.
    def call(inputs: Tensor) -> Tensor:
        bias = tf.convert_to_tensor(layer.bias) if layer.use_bias else None
        kernel = tf.convert_to_tensor(layer.kernel)
        outputs = convolution(
            inputs, kernel, bias, layer.strides, layer.padding, layer.dilation_rate
        )
        return layer.activation(outputs)

    return call


def _separable_call(layer: Any) -> Callable[[Tensor], Tensor]:
    # For speed: the second convolution, of 1x1, is a matrix product.
    def call(inputs: Tensor) -> Tensor:
        spread = keras.ops.depthwise_conv(
            inputs,
            layer.depthwise_kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
        )
        bias = tf.convert_to_tensor(layer.bias) if layer.use_bias else None
        kernel = tf.convert_to_tensor(layer.pointwise_kernel)
        ones = (1,) * layer.rank
        return layer.activation(convolution(spread, kernel, bias, ones, "valid", ones))

    return call


def _batch_normalization_call(layer: Any, weight: Tensor | None) -> Callable[..., Tensor]:
    # Ioffe and Szegedy 2015, arXiv 1502.03167, Algorithm 1, with the moments of Keras (no Bessel
    # correction), over rows with a weight above 0 (without padding) and unmasked steps.
    def call(inputs: Tensor, training: bool = False, mask: Tensor | None = None) -> Tensor:
        # Averages of quantized updates may be slightly below 0.
        mean, variance = layer.moving_mean, tf.maximum(layer.moving_variance, 0.0)
        if training and layer.trainable:
            mean, variance = _moments(inputs, layer.axis, weight, mask)
            old, new = layer.momentum, 1 - layer.momentum
            layer.moving_mean.assign(layer.moving_mean * old + mean * new)
            layer.moving_variance.assign(layer.moving_variance * old + variance * new)
        shape = [1] * len(inputs.shape)
        shape[layer.axis] = inputs.shape[layer.axis]
        mean, variance = (tf.reshape(value, shape) for value in (mean, variance))
        outputs = (inputs - mean) / tf.sqrt(variance + layer.epsilon)
        if layer.scale:
            outputs *= tf.reshape(layer.gamma, shape)
        return outputs + tf.reshape(layer.beta, shape) if layer.center else outputs

    return call


def _normalization_call(layer: Any) -> Callable[[Tensor], Tensor]:
    # Constants of the program; Keras's are tensors outside of it.
    mean = np.asarray(layer.mean, np.float32)
    size = np.maximum(np.sqrt(np.asarray(layer.variance, np.float32)), keras.config.epsilon())

    def call(inputs: Tensor) -> Tensor:
        return mean + inputs * size if layer.invert else (inputs - mean) / size

    return call


def _moments(
    inputs: Tensor, axis: int, weight: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns mean and variance over all axes but one, of rows with weight > 0, unmasked steps.

    Args:
        inputs: float32, shape (rows, ...).
        axis: axis of the channels.
        weight: shape (rows,); None, or another length where the layer is not called on rows:
            everything counts.
        mask: bool, the shape of `inputs` without its last axis; None: everything counts.
    """
    rank = len(inputs.shape)
    axes = [a for a in range(rank) if a != axis % rank]
    if weight is None or weight.shape[0] != inputs.shape[0]:
        counts = tf.ones([inputs.shape[0], *[1] * (rank - 1)])
    else:
        counts = tf.reshape(tf.cast(weight > 0, tf.float32), [-1, *[1] * (rank - 1)])
    if mask is not None:
        counts *= tf.cast(mask, tf.float32)[..., None]
    # Positions on axes that `counts` does not have.
    positions = prod(inputs.shape[a] for a in axes if counts.shape[a] == 1)
    total = tf.reduce_sum(counts) * float(positions)
    mean = tf.reduce_sum(inputs * counts, axes, keepdims=True) / total
    variance = tf.reduce_sum(tf.square(inputs - mean) * counts, axes) / total
    return tf.reshape(mean, variance.shape), variance


def _random_call(random: Any, layer: Any, noise: Noise | None) -> Callable[..., Tensor]:
    def call(inputs: Tensor, training: bool = False) -> Tensor:
        return random(layer, noise, inputs) if training else inputs

    return call
