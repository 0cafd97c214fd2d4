"""Gradients of convolutions, made of convolutions."""

from __future__ import annotations

from models.export.backend import Operation, Tensor, tf
from models.export.gradients.windows import Axis, axes_of, cut, fit, interleave, unfit

#: Largest number of output channels of a DEPTHWISE_CONV_2D, the size of TFLite's accumulator: with
#: more it never ends (`kAccBufferMaxSize` in optimized/depthwiseconv_float.h).
MAX_DEPTHWISE_CHANNELS = 4832


def _filter_gradient(x: Tensor, dy: Tensor, axes: list[Axis]) -> Tensor:
    """Returns dL/dkernel of y = conv(x, kernel), shape (kh, kw, ci, co).

    kernel[i, j] is multiplied with x at i·dilation + o·stride for every output position o. That is
    a convolution of x with dy as kernel, with batch and channels swapped, and stride and dilation.
    """
    rows, cols = axes
    gradient = tf.nn.conv2d(
        tf.transpose(fit(x, axes), [3, 1, 2, 0]),
        tf.transpose(dy, [1, 2, 0, 3]),
        strides=[rows.dilation, cols.dilation],
        padding="VALID",
        dilations=[rows.stride, cols.stride],
    )
    return tf.transpose(gradient, [1, 2, 0, 3])


def _input_gradient(kernel: Tensor, dy: Tensor, shape: list[int], axes: list[Axis]) -> Tensor:
    """Returns dL/dx of y = conv(x, kernel): the transposed convolution."""
    rows, cols = axes
    if rows.dilation != 1 or cols.dilation != 1:
        return _input_gradient_of_dilated(kernel, dy, axes)
    padded = [shape[0], rows.reach, cols.reach, shape[3]]
    dx = tf.nn.conv2d_transpose(dy, kernel, padded, [rows.stride, cols.stride], "VALID")
    return unfit(dx, axes)


def _input_gradient_of_dilated(kernel: Tensor, dy: Tensor, axes: list[Axis]) -> Tensor:
    # TRANSPOSE_CONV has no dilation: this is a convolution of dy with the kernel rotated by 180°.
    # Not used without dilation, because it multiplies the padding too (5x5 over 12x12, "valid":
    # 20 % more time for the whole step).
    if any(axis.stride != 1 for axis in axes):
        raise NotImplementedError("a convolution with both strides and dilation")
    pads = []
    for axis in axes:
        full = (axis.kernel - 1) * axis.dilation
        pads.append((full - axis.before, axis.size + axis.before - axis.out))
    rotated = tf.transpose(_rotated(kernel), [0, 1, 3, 2])
    return tf.nn.conv2d(
        tf.pad(dy, [(0, 0), *pads, (0, 0)]),
        rotated,
        strides=1,
        padding="VALID",
        dilations=[axis.dilation for axis in axes],
    )


def _rotated(kernel: Tensor) -> Tensor:
    """Returns the kernel rotated by 180°."""
    # Along one axis: of two, tflite-runtime 2.14 reverses only the first, without an error.
    taps, rest = kernel.shape[0] * kernel.shape[1], kernel.shape[2] * kernel.shape[3]
    return tf.reshape(tf.reverse(tf.reshape(kernel, [taps, rest]), [0]), kernel.shape)


def conv2d(op: Operation, dy: Tensor) -> list[Tensor | None]:
    """Returns the gradients of Conv2D, with or without groups: of x and of the kernel."""
    x, kernel = op.inputs
    axes = axes_of(op, x.shape[1:3], kernel.shape[:2], dy.shape[1:3])
    groups = x.shape[3] // kernel.shape[2]
    # The converter drops the gradient of the first layer's input, which nothing reads.
    if groups == 1:
        return [_input_gradient(kernel, dy, list(x.shape), axes), _filter_gradient(x, dy, axes)]
    shape = [*x.shape[:3], kernel.shape[2]]
    xs, kernels, dys = (tf.split(tensor, groups, axis=3) for tensor in (x, kernel, dy))
    return [
        tf.concat(
            [_input_gradient(k, d, shape, axes) for k, d in zip(kernels, dys, strict=True)], 3
        ),
        tf.concat([_filter_gradient(x, d, axes) for x, d in zip(xs, dys, strict=True)], 3),
    ]


def conv2d_transpose(op: Operation, dy: Tensor) -> list[Tensor | None]:
    """Returns the gradients of Conv2DBackpropInput(shape, kernel, x): of the kernel and of x."""
    # The operator is the input gradient of a convolution from dy's shape to x's; its gradients are
    # that convolution and its filter gradient.
    _, kernel, x = op.inputs
    axes = axes_of(op, dy.shape[1:3], kernel.shape[:2], x.shape[1:3])
    if any(axis.dilation != 1 for axis in axes):
        raise NotImplementedError("a transposed convolution with dilation")
    dx = tf.nn.conv2d(
        dy, kernel, strides=[a.stride for a in axes], padding=op.get_attr("padding").decode()
    )
    return [None, _filter_gradient(dy, x, axes), dx]


def depthwise_conv2d(op: Operation, dy: Tensor) -> list[Tensor | None]:
    """Returns the gradients of DepthwiseConv2dNative: of x and of the kernel."""
    x, kernel = op.inputs
    axes = axes_of(op, x.shape[1:3], kernel.shape[:2], dy.shape[1:3])
    return [_depthwise_input_gradient(kernel, dy, axes), _depthwise_filter_gradient(x, dy, axes)]


def _depthwise_filter_gradient(x: Tensor, dy: Tensor, axes: list[Axis]) -> Tensor:
    """Returns dL/dkernel; rows of the batch become channels, and are summed at the end."""
    x = fit(x, axes)
    n, depth = dy.shape[0], dy.shape[3]
    at_once = max(1, MAX_DEPTHWISE_CHANNELS // depth)
    if n <= at_once:
        total = _depthwise_filter_gradient_of(x, dy, axes)
    else:
        parts = [slice(start, start + at_once) for start in range(0, n, at_once)]
        total = tf.add_n([_depthwise_filter_gradient_of(x[p], dy[p], axes) for p in parts])
    rows, cols = axes
    channels = x.shape[3]
    return tf.reshape(total, [rows.kernel, cols.kernel, channels, depth // channels])


def _depthwise_filter_gradient_of(x: Tensor, dy: Tensor, axes: list[Axis]) -> Tensor:
    """Returns the filter gradient of some rows; shape (taps, channels · multiplier)."""
    rows, cols = axes
    n, height, width, channels = x.shape
    multiplier = dy.shape[3] // channels
    each = tf.raw_ops.DepthwiseConv2dNative(
        input=tf.reshape(tf.transpose(x, [1, 2, 0, 3]), [1, height, width, n * channels]),
        filter=tf.reshape(
            tf.transpose(dy, [1, 2, 0, 3]), [rows.out, cols.out, n * channels, multiplier]
        ),
        strides=[1, rows.dilation, cols.dilation, 1],
        padding="VALID",
        dilations=[1, rows.stride, cols.stride, 1],
    )
    taps = rows.kernel * cols.kernel
    return tf.reduce_sum(tf.reshape(each, [taps, n, channels * multiplier]), 1)


def _depthwise_input_gradient(kernel: Tensor, dy: Tensor, axes: list[Axis]) -> Tensor:
    """Returns dL/dx: dy, spread by the stride, convolved with the rotated kernel."""
    rows, cols = axes
    n, channels, multiplier = dy.shape[0], kernel.shape[2], kernel.shape[3]
    zeros = tf.zeros_like(dy)
    parts = [[zeros] * cols.stride for _ in range(rows.stride)]
    parts[0][0] = dy
    size = ((rows.out - 1) * rows.stride + 1, (cols.out - 1) * cols.stride + 1)
    spread = cut(interleave(parts), size)
    full = [((a.kernel - 1) * a.dilation,) * 2 for a in axes]
    rotated = tf.reshape(_rotated(kernel), [rows.kernel, cols.kernel, channels * multiplier, 1])
    each = tf.raw_ops.DepthwiseConv2dNative(
        input=tf.pad(spread, [(0, 0), *full, (0, 0)]),
        filter=rotated,
        strides=[1, 1, 1, 1],
        padding="VALID",
        dilations=[1, rows.dilation, cols.dilation, 1],
    )
    height, width = rows.reach, cols.reach
    if multiplier > 1:
        each = tf.reduce_sum(tf.reshape(each, [n * height * width, channels, multiplier]), 2)
    return unfit(tf.reshape(each, [n, height, width, channels]), axes)
