"""Keras's initializers in numpy: tensors drawn from the same distributions, without TensorFlow.

Fans and formulas are those of Keras 3, `keras.initializers.random_initializers`; the sources of the
methods are named there (Glorot & Bengio 2010, He et al. 2015, LeCun et al. 1998, Saxe et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod, sqrt
from typing import Any

import numpy as np

from learning.vector.parameters import F32, F64

#: Standard deviation of a standard normal distribution that is cut at -2 and 2.
_CUT_STD = 0.87962566103423978

#: Arguments of VarianceScaling that the named initializers stand for: scale, mode, distribution.
_SCALED = {
    "GlorotUniform": (1.0, "fan_avg", "uniform"),
    "GlorotNormal": (1.0, "fan_avg", "truncated_normal"),
    "HeUniform": (2.0, "fan_in", "uniform"),
    "HeNormal": (2.0, "fan_in", "truncated_normal"),
    "LecunUniform": (1.0, "fan_in", "uniform"),
    "LecunNormal": (1.0, "fan_in", "truncated_normal"),
}

Shape = tuple[int, ...]


def is_known(name: str) -> bool:
    """Returns whether `draw` has an initializer of this class name."""
    return name in _SCALED or name in _OTHERS


def draw(name: str, config: Mapping[str, Any], shape: Shape, rng: np.random.Generator) -> F32:
    """Draws a tensor as the initializer of this name does.

    Args:
        name: Keras's class name, see `is_known`.
        config: of the initializer; its own seed is left unused.
        shape: of the tensor.
        rng: draws the numbers.

    Raises:
        ValueError, TypeError: the configuration is not one of the initializer.
    """
    if name in _SCALED:
        values = _scaled(*_SCALED[name], shape, rng)
    else:
        values = _OTHERS[name](config, shape, rng)
    return np.broadcast_to(values, shape).astype(np.float32)


def fans(shape: Shape) -> tuple[int, int]:
    """Returns how many numbers lead into and out of an element, as Keras counts them."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    field = prod(shape[:-2])  # the receptive field of a convolution
    return shape[-2] * field, shape[-1] * field


def _scaled(
    scale: float, mode: str, distribution: str, shape: Shape, rng: np.random.Generator
) -> F64:
    """Draws with a variance of scale / fan."""
    fan_in, fan_out = fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    variance = scale / max(1.0, fan)
    if distribution == "uniform":
        limit = sqrt(3 * variance)
        return rng.uniform(-limit, limit, shape)
    if distribution == "truncated_normal":
        return _truncated(0.0, sqrt(variance) / _CUT_STD, shape, rng)
    if distribution == "untruncated_normal":
        return rng.normal(0.0, sqrt(variance), shape)
    raise ValueError(f"unknown distribution {distribution!r}")


def _truncated(mean: float, std: float, shape: Shape, rng: np.random.Generator) -> F64:
    """Draws from a normal distribution; numbers beyond two standard deviations are drawn again."""
    values = rng.standard_normal(prod(shape))
    while (beyond := np.flatnonzero(np.abs(values) > 2)).size:
        values[beyond] = rng.standard_normal(beyond.size)
    return mean + std * values.reshape(shape)


def _orthogonal(config: Mapping[str, Any], shape: Shape, rng: np.random.Generator) -> F64:
    """Draws a matrix with orthonormal rows or columns, times the gain (Saxe et al. 2013)."""
    rows, columns = prod(shape[:-1]), shape[-1]
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))  # uniform over all such matrices
    values: F64 = (q.T if rows < columns else q).reshape(shape)
    return float(config.get("gain", 1.0)) * values


def _variance_scaling(config: Mapping[str, Any], shape: Shape, rng: np.random.Generator) -> F64:
    distribution = str(config.get("distribution", "truncated_normal"))
    distribution = {"normal": "truncated_normal"}.get(distribution, distribution)
    mode = str(config.get("mode", "fan_in"))
    return _scaled(float(config.get("scale", 1.0)), mode, distribution, shape, rng)


_OTHERS: dict[str, Callable[[Mapping[str, Any], Shape, np.random.Generator], Any]] = {
    "Zeros": lambda _config, shape, _rng: np.zeros(shape),
    "Ones": lambda _config, shape, _rng: np.ones(shape),
    "Constant": lambda config, _shape, _rng: np.asarray(config["value"], np.float64),
    "Identity": lambda config, shape, _rng: (
        float(config.get("gain", 1.0)) * np.eye(shape[0], shape[-1])
    ),
    "RandomUniform": lambda config, shape, rng: rng.uniform(
        config.get("minval", -0.05), config.get("maxval", 0.05), shape
    ),
    "RandomNormal": lambda config, shape, rng: rng.normal(
        config.get("mean", 0.0), config.get("stddev", 0.05), shape
    ),
    "TruncatedNormal": lambda config, shape, rng: _truncated(
        config.get("mean", 0.0), config.get("stddev", 0.05), shape, rng
    ),
    "Orthogonal": _orthogonal,
    "VarianceScaling": _variance_scaling,
}
