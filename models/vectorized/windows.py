"""Convolutions and pooling: tap by tap, or as products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.inspect.operators import Kind
from models.vectorized.axes import (
    Array,
    Axes,
    Axis,
    Batch,
    FixedBatchError,
    UnsupportedError,
    physical,
    recorded,
    same_axis,
)
from models.vectorized.building import Builder, Operation, OperatorFunction, Value
from models.vectorized.moving import literal, padded, viewed
from models.vectorized.products import add_product, product_axes

_SAME = 0


@dataclass(frozen=True)
class _Windows:
    """Windows over height and width: (rows, height, width, channels)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    around: tuple[tuple[int, int], tuple[int, int]]
    places: tuple[int, int]

    def taps(self, array: Array) -> Iterator[Array]:
        """Returns what each tap of the window sees, row by row: (..., rows, places, channels)."""
        for i in range(self.size[0]):
            for j in range(self.size[1]):
                parts: list[Any] = [
                    slice(at * gap, at * gap + (count - 1) * step + 1, step)
                    for at, gap, count, step in zip(
                        (i, j), self.dilation, self.places, self.stride, strict=True
                    )
                ]
                yield array[..., *parts, :]


def _windows(
    value: Value, size: tuple[int, int], operation: Operation, fields: Sequence[int]
) -> _Windows:
    """Reads padding, stride width, stride height, and dilations if there are fields for them."""
    padding = operation.option(fields[0])
    stride = (operation.option(fields[2], "<i"), operation.option(fields[1], "<i"))
    dilation = (1, 1)
    if len(fields) > 3:
        dilation = (operation.option(fields[4], "<i", 1), operation.option(fields[3], "<i", 1))
    around, places = [], []
    for at in range(2):
        length = literal(value.axes, 1 + at)
        reach = (size[at] - 1) * dilation[at] + 1
        if padding == _SAME:
            count = -(-length // stride[at])
            missing = max((count - 1) * stride[at] + reach - length, 0)
            around.append((missing // 2, missing - missing // 2))
        else:
            count = (length - reach) // stride[at] + 1
            around.append((0, 0))
        places.append(max(count, 0))
    return _Windows(size, stride, dilation, (around[0], around[1]), (places[0], places[1]))


def _around(
    builder: Builder, operation: Operation, value: Value, windows: _Windows, filler: float
) -> tuple[Value, bool]:
    """Returns the input with its padding, and whether it is memory to free."""
    if windows.around == ((0, 0), (0, 0)):
        return value, False
    edges = [(0, 0), *windows.around, (0, 0)]
    return padded(builder, operation, value, edges, filler, own=False), True


def _pool(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    size = (operation.option(4, "<i"), operation.option(3, "<i"))
    windows = _windows(value, size, operation, (0, 1, 2))
    is_max = operation.kind == Kind.MAX_POOL_2D
    filled, own = _around(builder, operation, value, windows, -np.inf if is_max else 0)
    axes = (value.axes[0], *windows.places, value.axes[3])
    out = builder.output(operation, axes, value.level, nonnegative=value.nonnegative)
    _fold(builder, np.maximum if is_max else np.add, [*windows.taps(filled.array)], out)
    if not is_max:
        counts = np.ones(recorded(value.axes[1:3], builder.rows), np.float32)
        ones = np.pad(counts, windows.around)[..., None]
        total = np.zeros((*windows.places, 1), np.float32)
        for tap in windows.taps(ones):
            total += tap
        builder.do(value.level, np.divide, out.array, total, out.array)
    if own:
        builder.free(filled)
    return [builder.activate(out, operation.option(5))]


def _fold(
    builder: Builder, function: Callable[..., Any], parts: Sequence[Array], out: Value
) -> None:
    found = parts[0]
    for part in parts[1:]:
        builder.do(out.level, function, found, part, out.array)
        found = out.array
    if len(parts) == 1:
        builder.do(out.level, np.copyto, out.array, found)


def _convolution(builder: Builder, operation: Operation) -> Sequence[Value]:
    """A convolution as one product: the windows as rows of a matrix."""
    value, filters = operation.value(0), operation.value(1)
    count = literal(filters.axes, 0)
    size = (literal(filters.axes, 1), literal(filters.axes, 2))
    windows = _windows(value, size, operation, (0, 1, 2, 4, 5))
    channels = same_axis([value.axes[3], filters.axes[3]], builder.rows)
    if not value.axes[3] == filters.axes[3] == channels:
        raise FixedBatchError("a convolution over what may be rows")
    filled, own = _around(builder, operation, value, windows, 0)
    taps = size[0] * size[1]
    inner = _times(taps, channels)
    matrix = builder.new((value.axes[0], *windows.places, inner), np.float32, value.level)
    split = matrix.array.reshape(*matrix.array.shape[:-1], taps, -1)
    for number, tap in enumerate(windows.taps(filled.array)):
        builder.do(value.level, np.copyto, split[..., number, :], tap)
    flat = viewed(
        filters.array, (*filters.array.shape[: filters.lead], count, split.shape[-1] * taps)
    )
    copied = None
    if flat is None:
        copied = builder.new((count, inner), np.float32, filters.level)
        builder.do(
            filters.level, np.copyto, copied.array.reshape(filters.array.shape), filters.array
        )
        flat = copied.array
    out_axes: Axes = (value.axes[0], *windows.places, count)
    level = max(value.level, filters.level)
    out = builder.output(operation, out_axes, level)
    weights = Value(flat.swapaxes(-1, -2), (inner, count), filters.level)
    rows_axes: Axes = _merged(builder, matrix)
    rows = Value(_as_rows(matrix), rows_axes, value.level)
    target_axes = product_axes(builder, rows_axes, weights.axes)
    target = Value(_as_rows(out), target_axes, level)
    add_product(builder, rows, weights, target)
    builder.free(matrix)
    if copied is not None:
        builder.free(copied)
    if own:
        builder.free(filled)
    _add_bias(builder, operation, out)
    return [builder.activate(out, operation.option(3))]


def _times(count: int, axis: Axis) -> Axis:
    """Returns the axis of `count` times what an axis has."""
    if isinstance(axis, int):
        return count * axis
    if isinstance(axis, Batch):
        return Batch(count * axis.outer, axis.inner)
    raise FixedBatchError("a convolution over what may be rows")


def _as_rows(value: Value) -> Array:
    """Returns (rows, height, width, n) as (rows · height · width, n)."""
    found = viewed(value.array, (*value.array.shape[: value.lead], -1, value.array.shape[-1]))
    if found is None:
        raise UnsupportedError("a convolution into such a view runs on an interpreter only")
    return found


def _merged(builder: Builder, value: Value) -> Axes:
    """Returns the axes of `_as_rows`; only their number and the last matter afterwards."""
    return (int(np.prod(physical(value.axes[:-1], builder.rows))), value.axes[-1])


def _add_bias(builder: Builder, operation: Operation, out: Value, at: int = 2) -> None:
    bias = operation.optional(at)
    if bias is None:
        return
    if bias.level > out.level:
        raise UnsupportedError("a bias of each agent in a convolution that they share")
    builder.joined([out, bias])
    builder.do(out.level, np.add, out.array, bias.aligned(4), out.array)


def _depthwise(builder: Builder, operation: Operation) -> Sequence[Value]:
    """Each channel with filters of its own, tap by tap."""
    value, filters = operation.value(0), operation.value(1)
    size = (literal(filters.axes, 1), literal(filters.axes, 2))
    windows = _windows(value, size, operation, (0, 1, 2, 5, 6))
    if operation.option(3, "<i") != 1:
        raise UnsupportedError("DEPTHWISE_CONV_2D with a multiplier runs on an interpreter only")
    channels = same_axis([value.axes[3], filters.axes[3]], builder.rows)
    filled, own = _around(builder, operation, value, windows, 0)
    axes: Axes = (value.axes[0], *windows.places, channels)
    level = max(value.level, filters.level)
    out = builder.output(operation, axes, level)
    product = builder.new(axes, np.float32, level)
    target = out.array
    for number, tap in enumerate(windows.taps(filled.array)):
        i, j = divmod(number, size[1])
        weights = filters.array[..., :, i : i + 1, j : j + 1, :]
        builder.do(level, np.multiply, tap, weights, target)
        if target is product.array:
            builder.do(level, np.add, out.array, target, out.array)
        target = product.array
    builder.free(product)
    if own:
        builder.free(filled)
    _add_bias(builder, operation, out)
    return [builder.activate(out, operation.option(4))]


def _transposed_convolution(builder: Builder, operation: Operation) -> Sequence[Value]:
    """Each input number times each filter tap, added up where the windows overlap."""
    filters, value = operation.value(1), operation.value(2)
    count, height, width, channels = (literal(filters.axes, at) for at in range(4))
    shape = operation.shapes[0]
    stride = (operation.option(2, "<i"), operation.option(1, "<i"))
    lengths = [literal(value.axes, 1 + at) for at in range(2)]
    size = (height, width)
    full = [(n - 1) * step + k for n, step, k in zip(lengths, stride, size, strict=True)]
    same = operation.option(0) == _SAME
    before = [max(full[at] - shape[1 + at], 0) // 2 if same else 0 for at in range(2)]
    level = max(value.level, filters.level)
    taps = height * width * count
    by_tap = np.moveaxis(filters.array, -4, -2)  # (height, width, filters, channels)
    matrix = builder.new((taps, channels), np.float32, filters.level)
    builder.do(filters.level, np.copyto, matrix.array.reshape(by_tap.shape), by_tap)
    weights = Value(matrix.array.swapaxes(-1, -2), (channels, taps), filters.level)
    products = builder.new((*value.axes[:3], taps), np.float32, level)
    rows_axes = (int(np.prod(physical(value.axes[:3], builder.rows))), channels)
    rows = Value(_as_rows(value), rows_axes, value.level)
    add_product(builder, rows, weights, Value(_as_rows(products), (rows_axes[0], taps), level))
    sides = [max(full[at], before[at] + shape[1 + at]) for at in range(2)]
    whole = builder.new((value.axes[0], *sides, count), np.float32, level)
    builder.do(level, whole.array.fill, 0)
    windows = _Windows(size, stride, (1, 1), ((0, 0), (0, 0)), (lengths[0], lengths[1]))
    for number, tap in enumerate(windows.taps(whole.array)):
        part = products.array[..., number * count : (number + 1) * count]
        builder.do(level, np.add, tap, part, tap)
    parts = [slice(start, start + length) for start, length in zip(before, shape[1:3], strict=True)]
    out = builder.output(operation, (value.axes[0], *shape[1:3], count), level)
    builder.do(level, np.copyto, out.array, whole.array[..., parts[0], parts[1], :])
    for used in (matrix, products, whole):
        builder.free(used)
    _add_bias(builder, operation, out, 3)
    return [builder.activate(out, operation.option(3))]


OPERATORS: dict[int, OperatorFunction] = {
    Kind.MAX_POOL_2D: _pool,
    Kind.AVERAGE_POOL_2D: _pool,
    Kind.CONV_2D: _convolution,
    Kind.DEPTHWISE_CONV_2D: _depthwise,
    Kind.TRANSPOSE_CONV: _transposed_convolution,
}
