"""Convolutions as matrix products (im2col): the windows are the rows of a matrix.

TFLite's fast kernels (XNNPACK) support convolutions with constant kernels only, and in a program
kernels are cut from θ. Its other convolutions are three to four times slower than its matrix
product. Building the matrix costs memory moves, but the kernel's gradient reuses the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.export.backend import Tensor, tf
from models.export.gradients.windows import Axis, cut, fit, pad_to, window

#: Largest matrix of windows, in numbers: it stays in memory until the gradient is computed.
MAX_NUMBERS = 1 << 20
#: Cost of moving a number, in multiplications and additions.
_MOVE = 50


@dataclass(frozen=True)
class _Columns:
    """Layout of the width: one row of the matrix serves `phases` neighbouring outputs.

    A row holds `taps` blocks of `block` input columns, which the windows of its outputs share:
    fewer numbers are moved, and some are multiplied by zeros.
    """

    phases: int
    block: int
    taps: int

    @property
    def width(self) -> int:
        """Number of input columns in one row of the matrix."""
        return self.block * self.taps


def convolution(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
) -> Tensor:
    """Computes a convolution in one or two dimensions; supports "causal" padding and groups."""
    if padding == "causal":
        before = dilations[0] * (kernel.shape[0] - 1)
        x, padding = tf.pad(x, [(0, 0), (before, 0), (0, 0)]), "valid"
    if len(strides) == 1:
        n, steps, channels = x.shape
        image = tf.reshape(x, [n, 1, steps, channels])
        row = tf.reshape(kernel, [1, *kernel.shape])
        y = convolution(image, row, bias, (1, *strides), padding, (1, *dilations))
        return tf.reshape(y, [n, y.shape[2], y.shape[3]])
    same = padding == "same"
    axes = [
        window(size, taps, stride, dilation, same)
        for size, taps, stride, dilation in zip(
            x.shape[1:3], kernel.shape[:2], strides, dilations, strict=True
        )
    ]
    groups = x.shape[3] // kernel.shape[2]
    if groups > 1:
        pairs = zip(tf.split(x, groups, 3), tf.split(kernel, groups, 3), strict=True)
        y = tf.concat([_one_group(part, taps, None, axes, same) for part, taps in pairs], 3)
        return y if bias is None else y + bias
    return _one_group(x, kernel, bias, axes, same)


def _one_group(
    x: Tensor, kernel: Tensor, bias: Tensor | None, axes: Sequence[Axis], same: bool
) -> Tensor:
    channels = (kernel.shape[2], kernel.shape[3])
    if _fits_memory(axes, channels, x.shape[0]):
        return _product(x, kernel, bias, axes)
    strides, dilations = [axis.stride for axis in axes], [axis.dilation for axis in axes]
    y = tf.nn.conv2d(x, kernel, strides, "SAME" if same else "VALID", dilations=dilations)
    return y if bias is None else y + bias


def _fits_memory(axes: Sequence[Axis], channels: tuple[int, int], rows: int) -> bool:
    """Whether the matrix for `rows` rows is within the memory limit."""
    height, width = axes
    if any(axis.stride != 1 and axis.dilation != 1 for axis in axes):
        return False
    columns = _columns(height, width, channels)
    return rows * _numbers(height, width, columns, channels[0]) <= MAX_NUMBERS


def _product(x: Tensor, kernel: Tensor, bias: Tensor | None, axes: Sequence[Axis]) -> Tensor:
    """Convolves `x` (n, h, w, ci) with `kernel` (kh, kw, ci, co): returns (n, oh, ow, co)."""
    height, width = axes
    n, channels, filters = x.shape[0], kernel.shape[2], kernel.shape[3]
    columns = _columns(height, width, (channels, filters))
    x = fit(x, list(axes))
    x = _rows_of_windows(_columns_of_windows(x, width, columns), height)
    depth, outputs = x.shape[3], columns.phases * filters
    matrix = tf.reshape(x, [n * height.out * (width.out // columns.phases), depth])
    spread = tf.reshape(_spread(kernel, width, columns), [depth, outputs])
    y = tf.matmul(matrix, spread)
    if bias is not None:  # in long rows, which are fast to add and to sum
        y = y + (tf.tile(bias, [columns.phases]) if columns.phases > 1 else bias)
    return tf.reshape(y, [n, height.out, width.out, filters])


def _columns(height: Axis, width: Axis, channels: tuple[int, int]) -> _Columns:
    """Returns the cheapest layout."""
    if width.dilation != 1:
        return _Columns(1, 1, width.kernel)
    choices = []
    for phases in (1, 2, 4):
        if width.out % phases == 0:
            block = phases * width.stride
            reach = width.stride * (phases - 1) + width.kernel
            columns = _Columns(phases, block, -(-reach // block))
            numbers = _numbers(height, width, columns, channels[0])
            choices.append((numbers * (_MOVE + 2 * phases * channels[1]), phases, columns))
    return min(choices, key=lambda choice: choice[:2])[2]


def _numbers(height: Axis, width: Axis, columns: _Columns, channels: int) -> int:
    """Returns the size of the matrix for one row of the batch."""
    places = height.out * (width.out // columns.phases)
    return places * height.kernel * columns.width * channels


def _columns_of_windows(x: Tensor, width: Axis, columns: _Columns) -> Tensor:
    """Gathers windows along the width: (n, h, w, c) -> (n, h, ow / phases, taps·block·c)."""
    n, high, _, channels = x.shape
    places = width.out // columns.phases
    if width.dilation != 1:
        starts = [tap * width.dilation for tap in range(width.kernel)]
    else:
        starts = list(range(columns.taps))
        needed = (places - 1 + columns.taps) * columns.block
        x = pad_to(x, 2, needed)
        x = tf.reshape(x, [n, high, needed // columns.block, columns.block * channels])
    return _concatenated([cut(x, (high, places), (0, start)) for start in starts])


def _rows_of_windows(x: Tensor, height: Axis) -> Tensor:
    """Gathers windows along the height: (n, h, w, c) -> (n, oh, w, kh·c)."""
    n, _, wide, channels = x.shape
    stride = height.stride
    if stride == 1:
        starts = [tap * height.dilation for tap in range(height.kernel)]
        return _concatenated([cut(x, (height.out, wide), (start, 0)) for start in starts])
    # Neighbouring rows side by side: slices without steps are fast in both interpreters.
    groups = height.out - 1 + -(-height.kernel // stride)
    x = tf.reshape(pad_to(x, 1, groups * stride), [n, groups, stride * wide, channels])
    parts = []
    for tap in range(height.kernel):
        group, row = divmod(tap, stride)
        parts.append(cut(x, (height.out, wide), (group, row * wide)))
    return _concatenated(parts)


def _concatenated(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, 3)


def _spread(kernel: Tensor, width: Axis, columns: _Columns) -> Tensor:
    """Returns the kernels of a row's outputs side by side, with zeros outside their windows."""
    shifted = []
    for phase in range(columns.phases):
        before = phase * width.stride
        after = columns.width - before - width.kernel
        pads = [(0, 0), (before, after), (0, 0), (0, 0)]
        shifted.append(tf.pad(kernel, pads) if before or after else kernel)
    return _concatenated(shifted)
