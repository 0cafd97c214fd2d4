"""Products of matrices: one for all agents where they share a factor, else one for each."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from models.inspect.operators import Kind
from models.vectorized.axes import (
    Array,
    Axes,
    FixedBatchError,
    Loose,
    UnsupportedError,
    broadcast,
    recorded,
    same_axis,
)
from models.vectorized.building import Builder, Level, Operation, OperatorFunction, Value
from models.vectorized.moving import reshape, viewed


def _batch_matmul(builder: Builder, operation: Operation) -> Sequence[Value]:
    left, right = operation.value(0), operation.value(1)
    if operation.option(0):
        left = _transposed(left)
    if operation.option(1):
        right = _transposed(right)
    axes = product_axes(builder, left.axes, right.axes)
    out = builder.output(operation, axes, max(left.level, right.level))
    add_product(builder, left, right, out)
    return [out]


def _fully_connected(builder: Builder, operation: Operation) -> Sequence[Value]:
    value, weights = operation.value(0), operation.value(1)
    inner = recorded(weights.axes, builder.rows)[1]
    shape = recorded(value.axes, builder.rows)
    count = int(np.prod(shape)) // max(inner, 1)
    flat = reshape(builder, value, (count, inner))
    right = _transposed(weights)
    axes = product_axes(builder, flat.axes, right.axes)
    place = operation.places[0] if len(operation.shapes[0]) == len(axes) else None
    level = max(value.level, weights.level)
    out = builder.new(axes, operation.dtypes[0], level, place)
    add_product(builder, flat, right, out)
    builder.free(flat)
    bias = operation.optional(2)
    if bias is not None:
        axes, bias_level = builder.joined([out, bias])
        if bias_level > level:
            raise UnsupportedError("a bias of each agent in a product that they share")
        builder.do(level, np.add, out.array, bias.aligned(2), out.array)
    out = builder.activate(out, operation.option(0))
    if operation.shapes[0] == recorded(out.axes, builder.rows):
        return [out]
    found = reshape(builder, out, operation.shapes[0])
    builder.free(out)
    return [found]


def _segment_sum(builder: Builder, operation: Operation) -> Sequence[Value]:
    """Sums of rows by class, the gradient of a table of embeddings: (classes == index)ᵀ · rows."""
    value, index = operation.value(0), operation.value(1)
    classes, *rest = operation.shapes[0]
    if len(index.axes) != 1 or operation.dtypes[0] != np.float32:
        raise UnsupportedError("such an UNSORTED_SEGMENT_SUM runs on an interpreter only")
    count = recorded(value.axes, builder.rows)[0]
    flat = reshape(builder, value, (count, prod(rest)))
    chosen = builder.new((classes, *index.axes), np.float32, index.level)
    numbers = np.arange(classes, dtype=np.int32)[:, None]
    builder.do(index.level, _is_class, numbers, index.array[..., None, :], chosen.array)
    axes = product_axes(builder, chosen.axes, flat.axes)
    out = builder.new(axes, np.float32, max(value.level, index.level))
    add_product(builder, chosen, flat, out)
    found = reshape(builder, out, operation.shapes[0])
    for used in (flat, chosen, out):
        builder.free(used)
    return [found]


def _is_class(numbers: Array, index: Array, out: Array) -> None:
    np.copyto(out, np.equal(numbers, index))


def product_axes(builder: Builder, left: Axes, right: Axes) -> Axes:
    """Returns the axes of a product of (..., m, k) and (..., k, n)."""
    same_axis([left[-1], right[-2]], builder.rows)
    return (*broadcast([left[:-2], right[:-2]], builder.rows), left[-2], right[-1])


def add_product(builder: Builder, left: Value, right: Value, out: Value) -> None:
    """Adds a product of matrices."""
    if out.array.dtype != np.float32:
        raise UnsupportedError("products of integers run on an interpreter only")
    level, rank = out.level, len(out.axes)
    left, right = _stretched(left, -1, right, -2), _stretched(right, -2, left, -1)
    ready = [_ready(builder, value) for value in (left, right)]
    _add_ready(builder, level, rank, ready[0], ready[1], out)
    for value, given in zip(ready, (left, right), strict=True):
        if value is not given:
            builder.free(value)


def _add_ready(
    builder: Builder, level: Level, rank: int, left: Value, right: Value, out: Value
) -> None:
    first, second = left.array, right.array
    if left.level == Level.AGENTS > right.level and len(right.axes) == 2:
        merged = viewed(first, (-1, first.shape[-1]))
        target = viewed(out.array, (-1, out.array.shape[-1]))
        if merged is not None and target is not None:
            builder.do(level, np.matmul, merged, second, target)
            return
    first = first[(slice(None), *(None,) * (rank - len(left.axes)))] if left.lead else first
    second = second[(slice(None), *(None,) * (rank - len(right.axes)))] if right.lead else second
    builder.do(level, np.matmul, first, second, out.array)


def _stretched(value: Value, at: int, other: Value, there: int) -> Value:
    """Returns the value with its inner axis as long as the other's, if equal numbers stand for it.

    Raises:
        FixedBatchError: the length is not known.
    """
    if not isinstance(value.axes[at], Loose):
        return value
    if isinstance(other.axes[there], Loose):
        raise FixedBatchError("a product over what may be rows")
    shape = list(value.array.shape)
    shape[at] = other.array.shape[there]
    axes = list(value.axes)
    axes[at] = other.axes[there]
    return Value(np.broadcast_to(value.array, shape), tuple(axes), value.level, value.block)


def _ready(builder: Builder, value: Value) -> Value:
    """Returns the value, copied where products would take it number by number."""
    array = value.array
    row, column = array.strides[-2:]
    size = array.itemsize
    fits = (column == size and row >= size) or (row == size and column >= size)
    if fits or array.shape[-2:] == (1, 1):
        return value
    copy = builder.new(value.axes, array.dtype, value.level)
    builder.do(value.level, np.copyto, copy.array, array)
    return copy


def _transposed(value: Value) -> Value:
    axes = (*value.axes[:-2], value.axes[-1], value.axes[-2])
    return Value(value.array.swapaxes(-1, -2), axes, value.level, value.block)


OPERATORS: dict[int, OperatorFunction] = {
    Kind.BATCH_MATMUL: _batch_matmul,
    Kind.FULLY_CONNECTED: _fully_connected,
    Kind.UNSORTED_SEGMENT_SUM: _segment_sum,
}
