"""Activations whose TensorFlow operator has no TFLite built-in, made of operators that have one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from models.export.backend import Tensor, keras, tf
from models.export.gradients.overrides import SELU_ALPHA, SELU_SCALE


def _softplus(x: Tensor) -> Tensor:
    # log(1 + exp(x)) without overflow. The slope at 0 must be ½: zero biases and rows of 0 occur.
    size = tf.abs(x)
    return 0.5 * (x + size) + tf.math.log(1 + tf.exp(-size))


def _log_sigmoid(x: Tensor) -> Tensor:
    return -_softplus(-x)


def _selu(x: Tensor) -> Tensor:
    # At 0 the slope is the one for x > 0, as in TensorFlow.
    return tf.where(x >= 0, SELU_SCALE * x, SELU_SCALE * SELU_ALPHA * tf.nn.elu(x))


def gelu(x: Tensor) -> Tensor:
    """Returns x Φ(x) with derivative Φ(x) + x φ(x) (Hendrycks and Gimpel 2016)."""

    def with_gradient(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        below = 0.5 * (1 + _erf(x * math.sqrt(0.5)))
        density = tf.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return x * below, lambda dy: dy * (below + x * density)

    return tf.custom_gradient(with_gradient)(x)


# The rational approximation of the error function in Eigen (generic_fast_erf_float), for float32:
# odd over even polynomial, off by a few units in the last place on [-4, 4], and ±1 beyond.
_ERF_ODD = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_EVEN = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def _erf(x: Tensor) -> Tensor:
    x = tf.minimum(tf.maximum(x, -4.0), 4.0)
    square = x * x
    return x * _polynomial(square, _ERF_ODD) / _polynomial(square, _ERF_EVEN)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Evaluates a polynomial by Horner's rule, highest power first."""
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


_REPLACED: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "log_sigmoid": _log_sigmoid,
    "selu": _selu,
    "softplus": _softplus,
}


def replacement(activation: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns the substitute for an activation of Keras; None when its operator is a built-in."""
    is_kerass = str(getattr(activation, "__module__", "")).startswith("keras.")
    name = getattr(activation, "__name__", "")  # a layer, which may be an activation too, has none
    if name == "gelu" and activation is not keras.activations.gelu:
        return None  # keras.ops.gelu approximates it by a tanh unless told otherwise
    return _REPLACED.get(name) if is_kerass else None
