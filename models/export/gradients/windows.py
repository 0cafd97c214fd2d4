"""Geometry of sliding windows, for convolutions, pooling and their gradients.

All shapes are static: a program has a fixed batch size. Images are channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.export.backend import Operation, Tensor, tf


@dataclass(frozen=True)
class Axis:
    """Spatial axis of a convolution or pooling operator.

    Attributes:
        size: size of the input.
        kernel: taps of a window.
        stride: distance from one window to the next.
        dilation: distance from one tap to the next.
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
        """Number of input elements, padding included, that the windows cover."""
        return (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


def axes_of(op: Operation, size: list[int], kernel: list[int], out: list[int]) -> list[Axis]:
    """Returns height and width axis of a convolution or pooling operator."""
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
        axes.append(Axis(s, k, stride, dilation, o, before))
    return axes


def window(size: int, kernel: int, stride: int, dilation: int, same: bool) -> Axis:
    """Returns an axis of a convolution, with padding "same" or none."""
    covers = (kernel - 1) * dilation + 1
    out = -(-size // stride) if same else (size - covers) // stride + 1
    before = max((out - 1) * stride + covers - size, 0) // 2 if same else 0
    return Axis(size, kernel, stride, dilation, out, before)


def fit(x: Tensor, axes: list[Axis], fill: float = 0.0) -> Tensor:
    """Pads and cuts `x` so that windows start at 0 and cover all of it."""
    pads = [(a.before, max(a.reach - a.size - a.before, 0)) for a in axes]
    if any(pad != (0, 0) for pad in pads):
        x = tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    return cut(x, (axes[0].reach, axes[1].reach))


def cut(x: Tensor, size: tuple[int, int], start: tuple[int, int] = (0, 0)) -> Tensor:
    """Returns a part of an image; the image itself if that is all of it."""
    (top, left), (height, width) = start, size
    if top == left == 0 and x.shape[1] <= height and x.shape[2] <= width:
        return x
    return x[:, top : top + height, left : left + width, :]


def strided(x: Tensor, axis: int, tap: int, window: Axis) -> Tensor:
    """Returns the elements at a tap of every window along axis 1 or 2: `x[tap::stride]`.

    Uses slices without steps: with steps LiteRT is ten times slower.
    """
    first, place = divmod(tap, window.stride)
    groups = first + window.out
    x = _sized(x, axis, groups * window.stride)
    n, height, width, channels = x.shape
    if axis == 1:
        x = tf.reshape(x, [n, groups, window.stride * width, channels])
        return cut(x, (window.out, width), (first, place * width))
    x = tf.reshape(x, [n, height, groups, window.stride * channels])
    return x[:, :, first:, place * channels : (place + 1) * channels]


def _sized(x: Tensor, axis: int, size: int) -> Tensor:
    """Cuts axis 1 or 2 of an image to `size`, or pads it at its end."""
    return pad_to(cut(x, (size, x.shape[2]) if axis == 1 else (x.shape[1], size)), axis, size)


def pad_to(x: Tensor, axis: int, size: int) -> Tensor:
    """Pads an axis that is shorter than `size` with zeros at its end."""
    missing = size - x.shape[axis]
    if missing <= 0:
        return x
    return tf.pad(x, [(0, missing if index == axis else 0) for index in range(4)])


def unfit(x: Tensor, axes: list[Axis]) -> Tensor:
    """Inverts `fit` for gradients: drops padding; elements outside all windows are 0."""
    (rows, cols) = axes
    size = tuple(min(a.size, s - a.before) for a, s in zip(axes, x.shape[1:3], strict=True))
    x = cut(x, size, (rows.before, cols.before))
    missing = [(0, a.size - side) for a, side in zip(axes, x.shape[1:3], strict=True)]
    return tf.pad(x, [(0, 0), *missing, (0, 0)]) if any(m != (0, 0) for m in missing) else x


def interleave(parts: list[list[Tensor]]) -> Tensor:
    """Interleaves `parts[i][j]`, the (n, h, w, c) elements i, j of every window, to one image.

    Neighbours on the channel axis become neighbours in a row, rows become neighbours in a column.
    Uses concatenations and reshapes in four dimensions, the limit of TFLite's operators.
    """
    n, height, width, channels = parts[0][0].shape
    wide = width * len(parts[0])
    rows = [tf.reshape(tf.concat(row, 3), [n, height, wide, channels]) for row in parts]
    return tf.reshape(tf.concat(rows, 2), [n, height * len(parts), wide, channels])
