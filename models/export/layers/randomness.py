"""Random layers as pure functions of a seed, made of TFLite's integer operators.

A program takes a `seed`; every random number is a hash of the seed, of the layer call's position in
the model and of the element's position in the tensor. The same seed gives the same bits on every
interpreter and in TensorFlow itself, so that the exporter can compare gradients of such models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from models.export.backend import Tensor, tf
from models.export.gradients.overrides import SELU_ALPHA, SELU_SCALE

# Shifts and multipliers of lowbias32 (Wellons 2018, https://nullprogram.com/blog/2018/07/31/), a
# hash of 32 bits with little bias; the step is 2^32 over the golden ratio.
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
_STEP = 0x9E3779B9


class Noise:
    """Generator of random tensors for one pass through a model.

    Args:
        seed: int32 scalar.
    """

    def __init__(self, seed: Tensor) -> None:
        self._seed = seed
        self._calls = 0

    def bits(self, shape: tuple[int, ...]) -> Tensor:
        """Returns int32 of `shape`, uniform over all 2^32 values; different in every call."""
        self._calls += 1
        hashed = _mix(self._seed + _signed(self._calls * _STEP))
        # Axis after axis, so that the program holds one constant per axis position, not per
        # element.
        for side in shape:
            steps = np.arange(1, side + 1, dtype=np.uint32) * np.uint32(_STEP)
            hashed = _mix(tf.expand_dims(hashed, -1) + steps.view(np.int32))
        return hashed

    def keep(self, shape: tuple[int, ...], rate: float) -> Tensor:
        """Returns float32 of `shape`: 0 with probability `rate`, else 1."""
        if rate >= 1:
            return tf.zeros(shape)
        threshold = round(rate * 2**32) - 2**31
        return tf.cast(self.bits(shape) >= threshold, tf.float32)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Returns float32 of `shape`: mean 0, variance 1, within ±5.8 (Box and Muller 1958)."""
        # 24 bits each, exact in float32: in (0, 1] for the logarithm, and an angle.
        radius, angle = (
            tf.cast(tf.bitwise.right_shift(self.bits(shape), 8), tf.float32) for _ in range(2)
        )
        length = tf.sqrt(-2.0 * tf.math.log((radius + (2.0**23 + 1)) * 2.0**-24))
        return length * tf.cos(angle * (math.pi * 2.0**-23))


def _mix(x: Tensor) -> Tensor:
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        x = tf.bitwise.bitwise_xor(x, _shift(x, shift)) * _signed(multiplier)
    return tf.bitwise.bitwise_xor(x, _shift(x, 16))


def _shift(x: Tensor, count: int) -> Tensor:
    """Shifts to the right with zeros; TFLite's shift copies the sign, which is subtracted."""
    copied = tf.bitwise.right_shift(x, 31) * _signed(1 << (32 - count))
    return tf.bitwise.right_shift(x, count) - copied


def _signed(value: int) -> Any:
    """Returns the int32 of the same 32 bits."""
    return np.array(value % 2**32, np.uint32).view(np.int32)[()]


_Random = Callable[[Any, Noise, Tensor], Tensor]


def _dropout(layer: Any, noise: Noise, x: Tensor) -> Tensor:
    given = layer.noise_shape or [None] * len(x.shape)
    shape = tuple(int(g or side) for g, side in zip(given, x.shape, strict=True))
    return x * (noise.keep(shape, layer.rate) * _scale(layer.rate))


def _spatial_dropout(layer: Any, noise: Noise, x: Tensor) -> Tensor:
    # One draw per feature map.
    shape = (x.shape[0], *[1] * (len(x.shape) - 2), x.shape[-1])
    return x * (noise.keep(shape, layer.rate) * _scale(layer.rate))


def _scale(rate: float) -> float:
    return 1 / (1 - rate) if rate < 1 else 0.0


def _gaussian_dropout(layer: Any, noise: Noise, x: Tensor) -> Tensor:
    deviation = math.sqrt(layer.rate / (1 - layer.rate))
    return x * (1 + deviation * noise.normal(tuple(x.shape)))


def _gaussian_noise(layer: Any, noise: Noise, x: Tensor) -> Tensor:
    return x + layer.stddev * noise.normal(tuple(x.shape))


def _alpha_dropout(layer: Any, noise: Noise, x: Tensor) -> Tensor:
    # Klambauer et al. 2017, section 3: dropped elements get selu's lowest value, and an affine map
    # restores mean and variance.
    low, rate = -SELU_ALPHA * SELU_SCALE, layer.rate
    given = layer.noise_shape or [None] * len(x.shape)
    shape = tuple(int(g or side) for g, side in zip(given, x.shape, strict=True))
    keep = noise.keep(shape, rate)
    scale = ((1 - rate) * (1 + rate * low**2)) ** -0.5
    return scale * (x * keep + low * (1 - keep)) - scale * low * rate


_RANDOM: dict[str, _Random] = {
    "AlphaDropout": _alpha_dropout,
    "Dropout": _dropout,
    "GaussianDropout": _gaussian_dropout,
    "GaussianNoise": _gaussian_noise,
    "BaseSpatialDropout": _spatial_dropout,
}


def random_function(layer: Any) -> _Random | None:
    """Returns the training behaviour of a random layer as a function of noise; None for others.

    A subclass with its own `call` is not recognised: its `call` stays.
    """
    if not (getattr(layer, "rate", 0) or getattr(layer, "stddev", 0)):
        return None
    return _RANDOM.get(call_owner(layer))


def call_owner(layer: Any) -> str:
    """Returns the class of Keras whose `call` the layer uses; "" for a user's own `call`."""
    owner = next(base for base in type(layer).__mro__ if "call" in vars(base))
    return owner.__name__ if owner.__module__.startswith("keras.") else ""
