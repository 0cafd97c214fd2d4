"""Gradients made of TFLite built-in operators.

TensorFlow's own gradients of these operators (`ReluGrad`, `Conv2DBackpropFilter`, `MaxPoolGrad`, …)
exist in TFLite only as Flex operators, which the interpreters on devices lack. Each function here
gives the same gradient in terms of operators that TFLite does have. `OVERRIDES` goes into
`tf.Graph.gradient_override_map`, which `tf.gradients` obeys (`tf.GradientTape` does not).

All shapes are static: a program has a fixed batch size. Images are channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.export.backend import tf

#: TensorFlow has no type stubs: a `tf.Tensor` and a `tf.Operation` are `Any` to the type checker.
Tensor = Any
Operation = Any

# selu's constants: Klambauer et al. 2017, Self-normalizing neural networks, section 2.
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a convolution or pooling window.

    Attributes:
        size: of the input.
        kernel: of the window, in taps.
        stride: from one window to the next.
        dilation: from one tap to the next.
        out: number of windows.
        before: padding before the first input element.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    out: int
    before: int

    @property
    def reach(self) -> int:
        """Input elements, padding included, that some window touches."""
        return (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


def _axes(op: Operation, size: list[int], kernel: list[int], out: list[int]) -> list[_Axis]:
    """Height and width of a convolution or pooling operator (padding as TensorFlow defines it)."""
    if op.get_attr("data_format") != b"NHWC":
        raise NotImplementedError(f"{op.type} with data_format {op.get_attr('data_format')!r}")
    strides = op.get_attr("strides")[1:3]
    dilations = op.get_attr("dilations")[1:3] if "dilations" in op.node_def.attr else [1, 1]
    padding = op.get_attr("padding")
    if padding not in (b"VALID", b"SAME"):
        raise NotImplementedError(f"{op.type} with padding {padding!r}")
    axes = []
    for s, k, stride, dilation, o in zip(size, kernel, strides, dilations, out, strict=True):
        reach = (o - 1) * stride + (k - 1) * dilation + 1
        before = max(reach - s, 0) // 2 if padding == b"SAME" else 0
        axes.append(_Axis(s, k, stride, dilation, o, before))
    return axes


def _fit(x: Tensor, axes: list[_Axis], fill: float = 0.0) -> Tensor:
    """`x` padded and cut, so that windows start at 0 and cover all of it."""
    pads = [(a.before, max(a.reach - a.size - a.before, 0)) for a in axes]
    if any(pad != (0, 0) for pad in pads):
        x = tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    height, width = (a.reach for a in axes)
    return x if tuple(x.shape[1:3]) == (height, width) else x[:, :height, :width, :]


def _unfit(x: Tensor, axes: list[_Axis]) -> Tensor:
    """The inverse of `_fit` for gradients: padding dropped, what no window touched is 0."""
    (rows, cols) = axes
    x = x[:, rows.before : rows.before + rows.size, cols.before : cols.before + cols.size, :]
    missing = [(0, a.size - side) for a, side in zip(axes, x.shape[1:3], strict=True)]
    return tf.pad(x, [(0, 0), *missing, (0, 0)]) if any(m != (0, 0) for m in missing) else x


def _filter_gradient(x: Tensor, dy: Tensor, axes: list[_Axis]) -> Tensor:
    """dL/dkernel of y = conv(x, kernel), as (kh, kw, ci, co).

    kernel[i, j] meets x at i·dilation + o·stride for every output position o: again a convolution,
    of x with dy as its kernel, where batch and channels change places and stride and dilation too.
    """
    rows, cols = axes
    gradient = tf.nn.conv2d(
        tf.transpose(_fit(x, axes), [3, 1, 2, 0]),
        tf.transpose(dy, [1, 2, 0, 3]),
        strides=[rows.dilation, cols.dilation],
        padding="VALID",
        dilations=[rows.stride, cols.stride],
    )
    return tf.transpose(gradient, [1, 2, 0, 3])


def _input_gradient(kernel: Tensor, dy: Tensor, shape: list[int], axes: list[_Axis]) -> Tensor:
    """dL/dx of y = conv(x, kernel): the transposed convolution."""
    rows, cols = axes
    if rows.dilation != 1 or cols.dilation != 1:
        return _input_gradient_of_dilated(kernel, dy, axes)
    padded = [shape[0], rows.reach, cols.reach, shape[3]]
    dx = tf.nn.conv2d_transpose(dy, kernel, padded, [rows.stride, cols.stride], "VALID")
    return _unfit(dx, axes)


def _input_gradient_of_dilated(kernel: Tensor, dy: Tensor, axes: list[_Axis]) -> Tensor:
    # TRANSPOSE_CONV knows no dilation: a convolution of dy with the kernel turned by 180° instead.
    # It would do for all strides of 1, but multiplies the padding too (5x5 over 12x12, "valid":
    # 20 % more time for the whole step).
    if any(axis.stride != 1 for axis in axes):
        raise NotImplementedError("a convolution with both strides and dilation")
    pads = []
    for axis in axes:
        full = (axis.kernel - 1) * axis.dilation
        pads.append((full - axis.before, axis.size + axis.before - axis.out))
    turned = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
    return tf.nn.conv2d(
        tf.pad(dy, [(0, 0), *pads, (0, 0)]),
        turned,
        strides=1,
        padding="VALID",
        dilations=[axis.dilation for axis in axes],
    )


def _conv2d(op: Operation, dy: Tensor) -> list[Tensor | None]:
    x, kernel = op.inputs
    if x.shape[3] != kernel.shape[2]:
        raise NotImplementedError("a convolution with groups")
    axes = _axes(op, x.shape[1:3], kernel.shape[:2], dy.shape[1:3])
    # The first layer's input needs no gradient: the converter drops what nothing reads.
    return [_input_gradient(kernel, dy, list(x.shape), axes), _filter_gradient(x, dy, axes)]


def _conv2d_transpose(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # Conv2DBackpropInput(shape, kernel, x) is the input gradient of a convolution from dy's shape
    # to x's: its own gradients are that convolution and its filter gradient.
    _, kernel, x = op.inputs
    axes = _axes(op, dy.shape[1:3], kernel.shape[:2], x.shape[1:3])
    if any(axis.dilation != 1 for axis in axes):
        raise NotImplementedError("a transposed convolution with dilation")
    dx = tf.nn.conv2d(
        dy, kernel, strides=[a.stride for a in axes], padding=op.get_attr("padding").decode()
    )
    return [None, _filter_gradient(dy, x, axes), dx]


def _pool_axes(op: Operation, dy: Tensor) -> list[_Axis]:
    kernel = op.get_attr("ksize")[1:3]
    if kernel != op.get_attr("strides")[1:3]:
        raise NotImplementedError("pooling with strides other than pool_size")
    return _axes(op, op.inputs[0].shape[1:3], kernel, dy.shape[1:3])


def _interleave(parts: list[list[Tensor]]) -> Tensor:
    """One image from `parts[i][j]`, the (n, h, w, c) elements i, j of every pooling window.

    Neighbours on the channel axis become neighbours in a row, rows become neighbours in a column:
    concatenations and reshapes in four dimensions only, as TFLite's operators want them.
    """
    n, height, width, channels = parts[0][0].shape
    wide = width * len(parts[0])
    rows = [tf.reshape(tf.concat(row, 3), [n, height, wide, channels]) for row in parts]
    return tf.reshape(tf.concat(rows, 2), [n, height * len(parts), wide, channels])


def _max_pool(op: Operation, dy: Tensor) -> Tensor:
    # As TensorFlow does, the first maximum of a window gets all of the gradient. Ties are common (a
    # blank background is the same number everywhere); giving it to each would count it many times.
    axes = _pool_axes(op, dy)
    rows, cols = axes
    x = _fit(op.inputs[0], axes, fill=float(np.finfo(np.float32).min))
    left = dy
    parts: list[list[Tensor]] = []
    for i in range(rows.kernel):
        parts.append([])
        for j in range(cols.kernel):
            here = tf.equal(x[:, i :: rows.stride, j :: cols.stride, :], op.outputs[0])
            share = left * tf.cast(here, dy.dtype)
            parts[-1].append(share)
            left = left - share
    return _unfit(_interleave(parts), axes)


def _average_pool(op: Operation, dy: Tensor) -> Tensor:
    axes = _pool_axes(op, dy)
    rows, cols = axes
    # With padding "same" a window at the edge averages only what lies inside the input.
    counts = np.outer(_elements_inside(rows), _elements_inside(cols)).astype(np.float32)
    share = dy / counts[None, :, :, None]
    return _unfit(_interleave([[share] * cols.kernel] * rows.kernel), axes)


def _elements_inside(axis: _Axis) -> list[int]:
    starts = [o * axis.stride - axis.before for o in range(axis.out)]
    return [min(s + axis.kernel, axis.size) - max(s, 0) for s in starts]


def _relu(op: Operation, dy: Tensor) -> Tensor:
    return dy * tf.cast(op.outputs[0] > 0, dy.dtype)


def _relu6(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * tf.cast(tf.logical_and(y > 0, y < 6), dy.dtype)


def _leaky_relu(op: Operation, dy: Tensor) -> Tensor:
    slope = op.get_attr("alpha")
    return tf.where(op.inputs[0] > 0, dy, slope * dy)


def _elu(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return tf.where(y > 0, dy, dy * (y + 1))


def _selu(op: Operation, dy: Tensor) -> Tensor:
    y = op.outputs[0]
    return dy * tf.where(y > 0, SELU_SCALE * tf.ones_like(y), y + SELU_SCALE * SELU_ALPHA)


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


def _strided_slice(op: Operation, dy: Tensor) -> list[Tensor | None]:
    # Zeros go back where the slice did not look.
    shape = op.inputs[0].shape
    begin, _, step = (tf.get_static_value(tensor) for tensor in op.inputs[1:])
    if step is None or begin is None or any(step != 1) or op.get_attr("new_axis_mask"):
        raise NotImplementedError("a slice with steps, new axes or bounds known only at run time")
    begins, sizes = [0] * len(shape), list(shape)
    for axis in range(len(begin)):
        probe = np.arange(shape[axis])
        index = _slice_of(op, axis)
        taken = np.atleast_1d(probe[index])
        begins[axis], sizes[axis] = int(taken[0]), len(taken)
    pads = [(b, s - b - k) for b, s, k in zip(begins, shape, sizes, strict=True)]
    return [tf.pad(tf.reshape(dy, sizes), pads), None, None, None]


def _slice_of(op: Operation, axis: int) -> slice | int:
    if op.get_attr("ellipsis_mask"):
        raise NotImplementedError("a slice with an ellipsis")
    begin, end = (int(tf.get_static_value(op.inputs[i])[axis]) for i in (1, 2))
    bit = 1 << axis
    if op.get_attr("shrink_axis_mask") & bit:
        return begin
    return slice(
        None if op.get_attr("begin_mask") & bit else begin,
        None if op.get_attr("end_mask") & bit else end,
    )


_FORMULAS: dict[str, Callable[[Operation, Tensor], Any]] = {
    "AvgPool": _average_pool,
    "Conv2D": _conv2d,
    "Conv2DBackpropInput": _conv2d_transpose,
    "Elu": _elu,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "Relu": _relu,
    "Relu6": _relu6,
    "Rsqrt": _rsqrt,
    "Selu": _selu,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "StridedSlice": _strided_slice,
    "Tanh": _tanh,
}

#: For `tf.Graph.gradient_override_map`: operator -> registered name of its built-in-only gradient.
OVERRIDES: dict[str, str] = {op: f"FedgeBuiltin{op}" for op in _FORMULAS}

for _op, _formula in _FORMULAS.items():
    tf.RegisterGradient(OVERRIDES[_op])(_formula)
