"""Gradients of pooling over windows, overlapping or not."""

from __future__ import annotations

import numpy as np

from models.export.backend import Operation, Tensor, tf
from models.export.gradients.windows import Axis, axes_of, cut, fit, interleave, strided, unfit


def _pool_axes(op: Operation, dy: Tensor) -> list[Axis]:
    kernel = op.get_attr("ksize")[1:3]
    return axes_of(op, op.inputs[0].shape[1:3], kernel, dy.shape[1:3])


def max_pool(op: Operation, dy: Tensor) -> Tensor:
    """Returns the gradient of MaxPool."""
    # As in TensorFlow, the first maximum of a window gets all of the gradient. Ties are common (a
    # blank background is one number); giving the gradient to each would count it several times.
    axes = _pool_axes(op, dy)
    rows, cols = axes
    x = fit(op.inputs[0], axes, fill=float(np.finfo(np.float32).min))
    y, left = op.outputs[0], dy
    taps: list[list[Tensor]] = []
    for i in range(rows.kernel):
        line = strided(x, 1, i, rows)
        taps.append([])
        for j in range(cols.kernel):
            # 1 where the maximum is at a later tap.
            other = tf.sign(y - strided(line, 2, j, cols))
            rest = left * other
            taps[-1].append(left - rest)
            left = rest
    return unfit(_scatter(taps, axes), axes)


def average_pool(op: Operation, dy: Tensor) -> Tensor:
    """Returns the gradient of AvgPool."""
    axes = _pool_axes(op, dy)
    rows, cols = axes
    # With padding "same" a window at the edge averages only elements inside the input.
    counts = np.outer(_elements_inside(rows), _elements_inside(cols)).astype(np.float32)
    share = dy / counts[None, :, :, None]
    return unfit(_scatter([[share] * cols.kernel] * rows.kernel, axes), axes)


def _scatter(taps: list[list[Tensor]], axes: list[Axis]) -> Tensor:
    """Adds element (i, j) of window (o, p) at (o·stride + i, p·stride + j) of an image.

    Taps a stride apart fall on the same elements, shifted by a window: they are padded and added.
    The results, one image per phase of the stride, are interleaved.
    """
    rows, cols = axes
    windows = [-(-a.kernel // a.stride) for a in axes]  # that overlap on one element
    phases: list[list[Tensor]] = []
    for i in range(rows.stride):
        phases.append([])
        for j in range(cols.stride):
            shifted = [
                _shift(tap, (q, r), windows)
                for q, line in enumerate(taps[i :: rows.stride])
                for r, tap in enumerate(line[j :: cols.stride])
            ]
            phases[-1].append(tf.add_n(shifted) if shifted else None)
    blank = tf.zeros_like(phases[0][0])
    whole = [[blank if phase is None else phase for phase in line] for line in phases]
    return cut(interleave(whole), (rows.reach, cols.reach))


def _shift(tap: Tensor, by: tuple[int, int], windows: list[int]) -> Tensor:
    pads = [(shift, count - 1 - shift) for shift, count in zip(by, windows, strict=True)]
    return tf.pad(tap, [(0, 0), *pads, (0, 0)]) if any(p != (0, 0) for p in pads) else tap


def _elements_inside(axis: Axis) -> list[int]:
    starts = [o * axis.stride - axis.before for o in range(axis.out)]
    return [min(s + axis.kernel, axis.size) - max(s, 0) for s in starts]
