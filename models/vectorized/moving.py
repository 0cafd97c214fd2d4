"""Operators that move numbers: views where the memory allows, else one copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from fedge.errors import ModelError
from models.inspect.operators import Kind
from models.vectorized.axes import (
    Array,
    Axes,
    Axis,
    FixedBatchError,
    Loose,
    UnsupportedError,
    physical,
    recorded,
    reshaped,
    same_axis,
)
from models.vectorized.building import Builder, Level, Operation, OperatorFunction, Value


def reshape(builder: Builder, value: Value, target: tuple[int, ...]) -> Value:
    """Returns a value in another shape (of the program); copies only if no view does."""
    axes = reshaped(value.axes, target, builder.rows)
    lead = value.array.shape[: value.lead]
    array = viewed(value.array, (*lead, *physical(axes, builder.rows)))
    if array is not None:
        return builder.view(value, array, axes)
    out = builder.new(axes, value.array.dtype, value.level, nonnegative=value.nonnegative)
    builder.do(value.level, np.copyto, out.array.reshape(value.array.shape), value.array)
    return out


def viewed(array: Array, shape: tuple[int, ...]) -> Array | None:
    """Returns a view in another shape; None if there is none."""
    found = array.reshape(shape)
    return found if found.size == 0 or np.may_share_memory(found, array) else None


def literal(axes: Axes, at: int) -> int:
    """Returns the length of an axis that must not be rows."""
    axis = axes[at]
    if not isinstance(axis, int):
        raise FixedBatchError(f"an operator along the rows: axis {at} of {axes}")
    return axis


def axis_number(number: int, rank: int) -> int:
    """Returns the number of an axis, counted from the front."""
    if not -rank <= number < rank:
        raise ModelError(f"the program is damaged: axis {number} of {rank}")
    return number % rank


def _reshape(builder: Builder, operation: Operation) -> Sequence[Value]:
    return [reshape(builder, operation.value(0), operation.shapes[0])]


def _transpose(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    order = [int(number) for number in operation.constant(1, builder.rows)]
    lead = value.lead
    array = value.array.transpose(*range(lead), *(number + lead for number in order))
    return [builder.view(value, array, tuple(value.axes[number] for number in order))]


def _cut(builder: Builder, value: Value, parts: Sequence[slice], drop: Sequence[int]) -> Value:
    """Returns a view of a part of each axis; rows are taken whole. `drop`: axes that go."""
    axes: list[Axis] = []
    places: list[Any] = [slice(None)] * value.lead
    for at, (axis, part) in enumerate(zip(value.axes, parts, strict=True)):
        length = recorded([axis], builder.rows)[0]
        count = len(range(*part.indices(length)))
        if isinstance(axis, int):
            places.append(int(part.start) if at in drop else part)
            axes += [] if at in drop else [count]
        elif count != length or (part.step or 1) != 1 or at in drop:
            raise FixedBatchError("a part of the rows is taken")
        else:
            places.append(slice(None))
            axes.append(axis)
    return builder.view(value, value.array[tuple(places)], tuple(axes))


def _slice(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    begins, sizes = (operation.constant(at, builder.rows).tolist() for at in (1, 2))
    parts = [
        slice(begin, None if size < 0 else begin + size)
        for begin, size in zip(begins, sizes, strict=True)
    ]
    return [_cut(builder, value, parts, ())]


def _strided_slice(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    begins, ends, steps = (operation.constant(at, builder.rows).tolist() for at in (1, 2, 3))
    begin_mask, end_mask, ellipsis, new_axes, shrunk = (
        operation.option(field, "<i") for field in range(5)
    )
    if ellipsis or new_axes or (operation.option(5) and shrunk):
        raise UnsupportedError("STRIDED_SLICE with an ellipsis or new axes: interpreter only")
    shape = recorded(value.axes, builder.rows)
    parts, drop = [], []
    for at, length in enumerate(shape):
        if at >= len(begins):
            parts.append(slice(0, length, 1))
            continue
        bit, step = 1 << at, steps[at]
        begin = None if begin_mask & bit else begins[at]
        if shrunk & bit:
            begin = begins[at] % max(length, 1)
            parts.append(slice(begin, begin + 1, 1))
            drop.append(at)
            continue
        end = None if end_mask & bit else ends[at]
        if operation.option(5) and end is not None:
            end += begins[at]
        parts.append(slice(begin, end, step))
    return [_cut(builder, value, parts, drop)]


def _split(builder: Builder, operation: Operation) -> Sequence[Value]:
    first = operation.kind == Kind.SPLIT
    value = operation.value(1 if first else 0)
    number = int(operation.constant(0 if first else 2, builder.rows).reshape(-1)[0])
    at = axis_number(number, len(value.axes))
    length = literal(value.axes, at)
    if first:
        count = len(operation.shapes)
        sizes = [length // count] * count
    else:
        sizes = operation.constant(1, builder.rows).tolist()
        if -1 in sizes:
            sizes[sizes.index(-1)] = length - sum(sizes) - 1
    stops = list(accumulate(sizes))
    if stops[-1] != length or min(sizes) < 0:
        raise ModelError(f"the program is damaged: {length} numbers split into {sizes}")
    whole = [slice(None)] * len(value.axes)
    found = []
    for size, stop in zip(sizes, stops, strict=True):
        parts = [*whole[:at], slice(stop - size, stop), *whole[at + 1 :]]
        found.append(_cut(builder, value, parts, ()))
    return found


def _unpack(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    at = axis_number(operation.option(1, "<i"), len(value.axes))
    whole = [slice(None)] * len(value.axes)
    return [
        _cut(builder, value, [*whole[:at], slice(number, number + 1), *whole[at + 1 :]], [at])
        for number in range(literal(value.axes, at))
    ]


def _concatenation(builder: Builder, operation: Operation) -> Sequence[Value]:
    values = operation.values
    rank = len(values[0].axes)
    at = axis_number(operation.option(0, "<i"), rank)
    if any(len(value.axes) != rank for value in values):
        raise ModelError("the program is damaged: CONCATENATION of different ranks")
    lengths = [literal(value.axes, at) for value in values]
    axes = tuple(
        sum(lengths)
        if number == at
        else same_axis([value.axes[number] for value in values], builder.rows)
        for number in range(rank)
    )
    level = max(value.level for value in values)
    out = builder.output(operation, axes, level)
    for value, length, stop in zip(values, lengths, accumulate(lengths), strict=True):
        part = [slice(None)] * (out.lead + rank)
        part[out.lead + at] = slice(stop - length, stop)
        _copy(builder, level, out.array[tuple(part)], value.aligned(rank))
    return [builder.activate(out, operation.option(1))]


def _copy(builder: Builder, level: Level, target: Array, source: Array) -> None:
    """Adds a copy, unless the numbers are there already (`Operation.places`)."""
    same = target.ctypes.data == source.ctypes.data and target.shape == source.shape
    steps = zip(target.shape, target.strides, source.strides, strict=False)
    if not (same and all(one == other for length, one, other in steps if length > 1)):
        builder.do(level, np.copyto, target, source)


def _pack(builder: Builder, operation: Operation) -> Sequence[Value]:
    values = operation.values
    rank = len(values[0].axes) + 1
    at = axis_number(operation.option(1, "<i"), rank)
    common: list[Axis] = [
        same_axis(column, builder.rows)
        for column in zip(*(value.axes for value in values), strict=True)
    ]
    level = max(value.level for value in values)
    out = builder.output(operation, (*common[:at], len(values), *common[at:]), level)
    for number, value in enumerate(values):
        part: list[Any] = [slice(None)] * (out.lead + rank)
        part[out.lead + at] = number
        builder.do(level, np.copyto, out.array[tuple(part)], value.aligned(rank - 1))
    return [out]


def _pad(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    around = operation.constant(1, builder.rows).tolist()
    filler: Any = 0
    if operation.kind == Kind.PADV2:
        filler = operation.constant(2, builder.rows).reshape(-1)[0]
    return [padded(builder, operation, value, around, filler)]


def padded(
    builder: Builder,
    operation: Operation,
    value: Value,
    around: Sequence[Sequence[int]],
    filler: Any,
    *,
    own: bool = True,
) -> Value:
    """Returns a value with `filler` around it: (before, after) for each axis.

    `own`: whether it is the operator's output; else memory that the operator frees.
    """
    axes: list[Axis] = []
    inside: list[Any] = [slice(None)] * value.lead
    for at, (before, after) in enumerate(around):
        if before == after == 0:
            axes.append(value.axes[at])
            inside.append(slice(None))
        else:
            length = literal(value.axes, at)
            axes.append(length + before + after)
            inside.append(slice(before, before + length))
    if own:
        out = builder.output(operation, tuple(axes), value.level)
    else:
        out = builder.new(tuple(axes), value.array.dtype, value.level)
    builder.do(value.level, out.array.fill, filler)
    builder.do(value.level, np.copyto, out.array[tuple(inside)], value.array)
    return out


def _tile(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    counts = operation.constant(1, builder.rows).tolist()
    if all(count == 1 for count in counts):
        return [builder.view(value, value.array, value.axes)]
    axes: list[Axis] = []
    repeated: list[int] = []
    for axis, count in zip(value.axes, counts, strict=True):
        if axis == 1 and _may_be_rows(builder, count):
            axes.append(Loose(count))
            repeated += [1, 1]
        elif count == 1:
            axes.append(axis)
            repeated += [1, physical([axis], builder.rows)[0]]
        elif isinstance(axis, int):
            axes.append(axis * count)
            repeated += [count, axis]
        else:
            raise FixedBatchError("rows are repeated")
    out = builder.output(operation, tuple(axes), value.level)
    lead = value.array.shape[: value.lead]
    spread = tuple(length if at % 2 else 1 for at, length in enumerate(repeated))
    source = viewed(value.array, (*lead, *spread))
    copied = None
    if source is None:
        copied = builder.new(value.axes, value.array.dtype, value.level)
        builder.do(value.level, np.copyto, copied.array, value.array)
        source = copied.array.reshape(*lead, *spread)
    builder.do(value.level, np.copyto, out.array.reshape(*lead, *repeated), source)
    if copied is not None:
        builder.free(copied)
    return [out]


def _may_be_rows(builder: Builder, length: int) -> bool:
    return builder.rows.follow and length > 0 and length % builder.rows.recorded == 0


def _broadcast_to(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(1 if operation.kind == Kind.FILL else 0)
    target = operation.shapes[0]
    missing = len(target) - len(value.axes)
    axes: list[Axis] = []
    for axis, length in zip((*(1,) * missing, *value.axes), target, strict=True):
        if axis == 1 and length != 1:
            axes.append(Loose(length) if _may_be_rows(builder, length) else length)
        else:
            axes.append(axis)
    lead = value.array.shape[: value.lead]
    shape = (*lead, *physical(axes, builder.rows))
    return [builder.view(value, np.broadcast_to(value.aligned(len(target)), shape), tuple(axes))]


def _reverse(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    rank = len(value.axes)
    wanted = {
        axis_number(int(number), rank) for number in operation.constant(1, builder.rows).reshape(-1)
    }
    for at in wanted:
        literal(value.axes, at)
    parts = tuple(slice(None, None, -1 if at in wanted else 1) for at in range(rank))
    array = value.array[(*(slice(None),) * value.lead, *parts)]
    return [builder.view(value, array, value.axes)]


def _one_hot(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    count = int(operation.constant(1, builder.rows))
    on, off = (operation.constant(at, builder.rows).reshape(-1)[0] for at in (2, 3))
    rank = len(value.axes) + 1
    at = axis_number(operation.option(0, "<i", -1), rank)
    axes = (*value.axes[:at], count, *value.axes[at:])
    out = builder.output(operation, axes, value.level)
    numbers = np.arange(count, dtype=np.int32).reshape(-1, *(1,) * (rank - at - 1))
    index = np.expand_dims(value.array, value.lead + at)
    if on == 1 and off == 0:  # comparing writes 0 and 1 itself
        builder.do(value.level, _equal, index, numbers, out.array)
    else:
        builder.do(value.level, _choose, index, numbers, out.array, on, off)
    return [out]


def _equal(left: Array, right: Array, out: Array) -> None:
    np.copyto(out, np.equal(left, right))


def _choose(left: Array, right: Array, out: Array, on: Any, off: Any) -> None:
    np.copyto(out, np.where(np.equal(left, right), on, off))


def _gather(builder: Builder, operation: Operation) -> Sequence[Value]:
    """Parts of a table by their numbers along an axis."""
    table, index = operation.value(0), operation.value(1)
    at = axis_number(operation.option(0, "<i"), len(table.axes))
    own = index.level == Level.AGENTS
    if operation.option(1, "<i") or (own and at):
        raise UnsupportedError("such a GATHER along an inner axis runs on an interpreter only")
    literal(table.axes, at)
    level = max(table.level, index.level)
    axes = (*table.axes[:at], *index.axes, *table.axes[at + 1 :])
    out = builder.output(operation, axes, level)
    if own and table.level == Level.AGENTS:
        agents = np.arange(builder.agents).reshape(-1, *(1,) * len(index.axes))
        builder.do(level, _take_own, table.array, agents, index.array, out.array)
    else:
        builder.do(level, _take, table.array, index.array, at + table.lead, out.array)
    return [out]


def _take(table: Array, index: Array, axis: int, out: Array) -> None:
    np.take(table, index, axis=axis, out=out, mode="clip")


def _take_own(table: Array, agents: Array, index: Array, out: Array) -> None:
    np.copyto(out, table[agents, np.clip(index, 0, table.shape[1] - 1)])


def _shape(_: Builder, operation: Operation) -> Sequence[Value]:
    axes = operation.value(0).axes
    numbers = [literal(axes, at) for at in range(len(axes))]
    return [Value(np.array(numbers, operation.dtypes[0]), (len(axes),), Level.CONSTANT)]


OPERATORS: dict[int, OperatorFunction] = {
    Kind.RESHAPE: _reshape,
    Kind.SQUEEZE: _reshape,
    Kind.EXPAND_DIMS: _reshape,
    Kind.TRANSPOSE: _transpose,
    Kind.SLICE: _slice,
    Kind.STRIDED_SLICE: _strided_slice,
    Kind.SPLIT: _split,
    Kind.SPLIT_V: _split,
    Kind.UNPACK: _unpack,
    Kind.CONCATENATION: _concatenation,
    Kind.PACK: _pack,
    Kind.PAD: _pad,
    Kind.PADV2: _pad,
    Kind.TILE: _tile,
    Kind.BROADCAST_TO: _broadcast_to,
    Kind.FILL: _broadcast_to,
    Kind.REVERSE_V2: _reverse,
    Kind.ONE_HOT: _one_hot,
    Kind.GATHER: _gather,
    Kind.SHAPE: _shape,
}
