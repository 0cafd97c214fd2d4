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


def fit(x: Tensor, axes: list[Axis], fill: float = 0.0) -> Tensor:
    """`x` padded and cut, so that windows start at 0 and cover all of it."""
    pads = [(a.before, max(a.reach - a.size - a.before, 0)) for a in axes]
    if any(pad != (0, 0) for pad in pads):
        x = tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    height, width = (a.reach for a in axes)
    return x if tuple(x.shape[1:3]) == (height, width) else x[:, :height, :width, :]


def unfit(x: Tensor, axes: list[Axis]) -> Tensor:
    """The inverse of `fit` for gradients: padding dropped, what no window touched is 0."""
    (rows, cols) = axes
    x = x[:, rows.before : rows.before + rows.size, cols.before : cols.before + cols.size, :]
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
