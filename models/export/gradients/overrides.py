"""Gradients of elementwise operators and of operators that move elements; table of all overrides.

TensorFlow's own gradients of these operators (`ReluGrad`, `Conv2DBackpropFilter`, `MaxPoolGrad`, …)
exist in TFLite only as Flex operators, which the interpreters on devices lack. Each function here
computes the same gradient with TFLite built-in operators. `OVERRIDES` is for
`tf.Graph.gradient_override_map`, which `tf.gradients` uses and `tf.GradientTape` ignores. All
shapes are static: a program has a fixed batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from models.export.backend import Operation, Tensor, tf
from models.export.gradients.convolutions import conv2d, conv2d_transpose, depthwise_conv2d
from models.export.gradients.pooling import average_pool, max_pool

# selu's constants: Klambauer et al. 2017, Self-normalizing neural networks, section 2.
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805

#: Inputs of a layer with one output from which a sum of products per row is faster than a matrix
#: product, for which the interpreters transpose the rows.
_MANY_INPUTS = 64


# Comparing with a number is slow in tflite-runtime; `tf.sign` is not.
def _positive(x: Tensor) -> Tensor:
    """Returns 1 where x > 0, else 0."""
    return tf.nn.relu(tf.sign(x))


def _relu(op: Operation, dy: Tensor) -> Tensor:
    return dy * tf.sign(op.outputs[0])


def _relu6(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * (tf.sign(y) * tf.sign(6 - y))


def _leaky_relu(op: Operation, dy: Tensor) -> Tensor:
    slope = op.get_attr("alpha")
    return dy * (slope + (1 - slope) * _positive(op.inputs[0]))


def _elu(op: Operation, dy: Tensor) -> Tensor:
    return dy * (tf.minimum(op.outputs[0], 0) + 1)


def _selu(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    below = tf.minimum(y, 0) + SELU_SCALE * SELU_ALPHA
    not_below = 1 - tf.nn.relu(-tf.sign(y))
    return dy * (below + (SELU_SCALE - SELU_SCALE * SELU_ALPHA) * not_below)


def _max(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # As in TensorFlow, equal maxima share the gradient.
    x, axis = op.inputs
    y = op.outputs[0]
    if not op.get_attr("keep_dims"):
        axes = [int(a) % len(x.shape) for a in np.atleast_1d(tf.get_static_value(axis))]
        kept = [1 if index in axes else side for index, side in enumerate(x.shape)]
        y, dy = tf.reshape(y, kept), tf.reshape(dy, kept)
    largest = 1 + tf.sign(x - y)
    return [largest * (dy / tf.reduce_sum(largest, axis, keepdims=True)), None]


def _softplus(op: Operation, dy: Tensor) -> Tensor:
    return dy * tf.sigmoid(op.inputs[0])


def _softsign(op: Operation, dy: Tensor) -> Tensor:
    return dy / tf.square(1 + tf.abs(op.inputs[0]))


def _tanh(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * (1 - y * y)


def _sigmoid(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * y * (1 - y)


def _rsqrt(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * (-0.5) * y * y * y


def _mat_mul(op: Operation, dy: Tensor) -> list[Tensor]:
    a, b = op.inputs
    transposed_a, transposed_b = op.get_attr("transpose_a"), op.get_attr("transpose_b")
    if not (transposed_a or transposed_b) and dy.shape[1] == 1 and a.shape[1] >= _MANY_INPUTS:
        db = tf.reshape(tf.reduce_sum(a * dy, 0), b.shape)
        return [tf.matmul(dy, b, transpose_b=True), db]
    if transposed_a:
        da = tf.matmul(b, dy, transpose_a=transposed_b, transpose_b=True)
    else:
        da = tf.matmul(dy, b, transpose_b=not transposed_b)
    if transposed_b:
        db = tf.matmul(dy, a, transpose_a=True, transpose_b=transposed_a)
    else:
        db = tf.matmul(a, dy, transpose_a=not transposed_a)
    return [da, db]


def _strided_slice(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # Zeros for elements outside the slice, one axis after the other.
    shape = op.inputs[0].shape
    taken = _taken(op, list(shape))
    dx = tf.reshape(dy, [len(places) for places in taken])
    for axis, places in enumerate(taken):
        step = int(places[1] - places[0]) if len(places) > 1 else 1
        if step < 0:
            dx, places = tf.reverse(dx, [axis]), places[::-1]
        dx = _spread(dx, axis, abs(step))
        pads = [(0, 0)] * len(shape)
        pads[axis] = (int(places[0]), shape[axis] - 1 - int(places[-1]))
        dx = tf.pad(dx, pads) if any(pads[axis]) else dx
    return [dx, None, None, None]


def _taken(op: Operation, shape: list[int]) -> list[Any]:
    """Returns for each axis the indexes that a slice takes, in its order."""
    begin, end, step = (tf.get_static_value(tensor) for tensor in op.inputs[1:])
    if begin is None or end is None or step is None:
        raise NotImplementedError("a slice whose bounds are known only at run time")
    taken: list[Any] = []
    for number in range(len(begin)):
        bit = 1 << number
        if op.get_attr("ellipsis_mask") & bit:
            after = _consuming(op, range(number + 1, len(begin)))
            taken += [np.arange(side) for side in shape[len(taken) : len(shape) - after]]
        elif not op.get_attr("new_axis_mask") & bit:
            first = None if op.get_attr("begin_mask") & bit else int(begin[number])
            last = None if op.get_attr("end_mask") & bit else int(end[number])
            one = op.get_attr("shrink_axis_mask") & bit
            index = int(begin[number]) if one else slice(first, last, int(step[number]))
            taken.append(np.atleast_1d(np.arange(shape[len(taken)])[index]))
    taken += [np.arange(side) for side in shape[len(taken) :]]
    if not all(map(len, taken)):
        raise NotImplementedError("a slice that takes nothing")
    return taken


def _consuming(op: Operation, numbers: range) -> int:
    """Returns how many of a slice's entries stand for an axis of the input."""
    return sum(not op.get_attr("new_axis_mask") & (1 << number) for number in numbers)


def _spread(x: Tensor, axis: int, step: int) -> Tensor:
    """Inserts step - 1 zeros between neighbours along an axis."""
    if step == 1:
        return x
    shape = [int(side) for side in x.shape]
    before, side, after = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    apart = tf.pad(tf.reshape(x, [before, side, 1, after]), [(0, 0), (0, 0), (0, step - 1), (0, 0)])
    whole = tf.reshape(apart, [before, side * step, after])
    shape[axis] = (side - 1) * step + 1
    return tf.reshape(whole[:, : shape[axis]], shape)


def _tile(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # Sum over the copies, one axis after the other, in three dimensions: the interpreters' fast
    # paths for sums support them (TensorFlow doubles the rank for its sum).
    shape = [int(side) for side in dy.shape]
    for axis, side in enumerate(op.inputs[0].shape):
        copies = shape[axis] // side
        if copies == 1:
            continue
        before, after = prod(shape[:axis]), prod(shape[axis:]) // copies
        dy = tf.reduce_sum(tf.reshape(dy, [before, copies, after]), 1)
        shape[axis] = side
    return [tf.reshape(dy, shape), None]


def _gather(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # Each row of a table (an embedding) gets the sum over the positions that read it.
    table, indices, axis = op.inputs
    if op.get_attr("batch_dims"):
        raise NotImplementedError("a gather with different indexes for each row (take_along_axis)")
    shape = [int(side) for side in table.shape]
    where = int(tf.get_static_value(axis)) % len(shape)
    before, rows, after = prod(shape[:where]), shape[where], prod(shape[where + 1 :])
    count = prod(indices.shape)
    if before > 1:  # gathered along another axis than the first: move that axis to the front
        dy = tf.transpose(tf.reshape(dy, [before, count, after]), [1, 0, 2])
    summed = tf.math.unsorted_segment_sum(
        tf.reshape(dy, [count, before * after]), tf.reshape(indices, [count]), rows
    )
    if before > 1:
        summed = tf.transpose(tf.reshape(summed, [rows, before, after]), [1, 0, 2])
    return [tf.reshape(summed, shape), None, None]


_FORMULAS: dict[str, Callable[[Operation, Tensor], Any]] = {
    "AvgPool": average_pool,
    "Conv2D": conv2d,
    "Conv2DBackpropInput": conv2d_transpose,
    "DepthwiseConv2dNative": depthwise_conv2d,
    "Elu": _elu,
    "GatherV2": _gather,
    "LeakyRelu": _leaky_relu,
    "MatMul": _mat_mul,
    "Max": _max,
    "MaxPool": max_pool,
    "Relu": _relu,
    "Relu6": _relu6,
    "Rsqrt": _rsqrt,
    "Selu": _selu,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "StridedSlice": _strided_slice,
    "Tanh": _tanh,
    "Tile": _tile,
}

#: Operator -> registered name of its gradient, for `tf.Graph.gradient_override_map`.
OVERRIDES: dict[str, str] = {op: f"FedgeBuiltin{op}" for op in _FORMULAS}


def _named(formula: Callable[[Operation, Tensor], Any]) -> Callable[[Operation, Tensor], Any]:
    """Adds the operator's name to the formula's errors."""

    def gradient(op: Operation, dy: Tensor) -> Any:
        try:
            return formula(op, dy)
        except NotImplementedError as error:
            raise NotImplementedError(f"{op.name}: {error}") from error

    return gradient


for _op, _formula in _FORMULAS.items():
    tf.RegisterGradient(OVERRIDES[_op])(_named(_formula))
