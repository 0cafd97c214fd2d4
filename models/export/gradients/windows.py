"""Geometry of sliding windows: what convolutions and pooling, and their gradients, share.

All shapes are static: a program has a fixed batch size. Images are channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.export.backend import Operation, Tensor, tf


@dataclass(frozen=True)
class Axis:
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


def axes_of(op: Operation, size: list[int], kernel: list[int], out: list[int]) -> list[Axis]:
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
        axes.append(Axis(s, k, stride, dilation, o, before))
    return axes


def window(size: int, kernel: int, stride: int, dilation: int, same: bool) -> Axis:
    """One axis of a convolution, padding "same" or none."""
    covers = (kernel - 1) * dilation + 1
    out = -(-size // stride) if same else (size - covers) // stride + 1
    before = max((out - 1) * stride + covers - size, 0) // 2 if same else 0
    return Axis(size, kernel, stride, dilation, out, before)


def fit(x: Tensor, axes: list[Axis], fill: float = 0.0) -> Tensor:
    """`x` padded and cut, so that windows start at 0 and cover all of it."""
    pads = [(a.before, max(a.reach - a.size - a.before, 0)) for a in axes]
    if any(pad != (0, 0) for pad in pads):
        x = tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    return cut(x, (axes[0].reach, axes[1].reach))


def cut(x: Tensor, size: tuple[int, int], start: tuple[int, int] = (0, 0)) -> Tensor:
    """A part of an image, itself when that is all of it."""
    (top, left), (height, width) = start, size
    if top == left == 0 and x.shape[1] <= height and x.shape[2] <= width:
        return x
    return x[:, top : top + height, left : left + width, :]


def strided(x: Tensor, axis: int, tap: int, window: Axis) -> Tensor:
    """What a tap of every window sees along axis 1 or 2 of an image: `x[tap::stride]`.

    By slices without steps: LiteRT is ten times slower with steps.
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
    """Axis 1 or 2 of an image cut at its end, or with zeros put there."""
    return pad_to(cut(x, (size, x.shape[2]) if axis == 1 else (x.shape[1], size)), axis, size)


def pad_to(x: Tensor, axis: int, size: int) -> Tensor:
    """Zeros after the end of an axis that is shorter than `size`."""
    missing = size - x.shape[axis]
    if missing <= 0:
        return x
    return tf.pad(x, [(0, missing if index == axis else 0) for index in range(4)])


def unfit(x: Tensor, axes: list[Axis]) -> Tensor:
    """The inverse of `fit` for gradients: padding dropped, what no window touched is 0."""
    (rows, cols) = axes
    size = tuple(min(a.size, s - a.before) for a, s in zip(axes, x.shape[1:3], strict=True))
    x = cut(x, size, (rows.before, cols.before))
    missing = [(0, a.size - side) for a, side in zip(axes, x.shape[1:3], strict=True)]
    return tf.pad(x, [(0, 0), *missing, (0, 0)]) if any(m != (0, 0) for m in missing) else x


def interleave(parts: list[list[Tensor]]) -> Tensor:
    """One image from `parts[i][j]`, the (n, h, w, c) elements i, j of every pooling window.

    Neighbours on the channel axis become neighbours in a row, rows become neighbours in a column:
    concatenations and reshapes in four dimensions only, as TFLite's operators want them.
    """
    n, height, width, channels = parts[0][0].shape
    wide = width * len(parts[0])
    rows = [tf.reshape(tf.concat(row, 3), [n, height, wide, channels]) for row in parts]
    return tf.reshape(tf.concat(rows, 2), [n, height * len(parts), wide, channels])
