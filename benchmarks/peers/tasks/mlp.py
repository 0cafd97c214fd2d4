"""The model of all peers, in numpy: 64-32-10, ReLU, softmax cross-entropy; 2,410 parameters.

Everything works on arrays with any number of leading axes: one client, or all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parts = list[Array]

FEATURES, HIDDEN, CLASSES = 64, 32, 10
SHAPES = ((FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)


def split(theta: Array) -> Parts:
    """Kernel and bias of both layers, as views of θ [P]."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES])[:-1]
    parts = np.split(theta, ends)
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def join(parts: Sequence[Array]) -> Array:
    """θ [P] of kernels and biases."""
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


def one_hot(labels: Array, dtype: Any = np.float32) -> Array:
    """Labels [..., n] as [..., n, 10]."""
    return np.eye(CLASSES, dtype=dtype)[labels]


def sgd_step(parts: Parts, x: Array, y: Array, rate: float) -> None:
    """One step on the mean loss of x [..., n, 64] and y [..., n, 10], in place.

    Args:
        parts: kernels [..., 64, 32], [..., 32, 10] and biases [..., 32], [..., 10].
        x: inputs.
        y: labels, one-hot.
        rate: of learning.
    """
    kernel_1, bias_1, kernel_2, bias_2 = parts
    hidden: Array = x @ kernel_1
    hidden += bias_1[..., None, :]
    np.maximum(hidden, 0, out=hidden)
    scores: Array = hidden @ kernel_2
    scores += bias_2[..., None, :]
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    scores -= y
    scores *= rate / x.shape[-2]
    back: Array = scores @ kernel_2.swapaxes(-1, -2)
    back *= hidden > 0
    kernel_2 -= hidden.swapaxes(-1, -2) @ scores
    bias_2 -= scores.sum(-2)
    kernel_1 -= x.swapaxes(-1, -2) @ back
    bias_1 -= back.sum(-2)
