"""Operators that take sums, maxima and the like over axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from models.inspect.operators import Kind
from models.vectorized.axes import Array, Axes, FixedBatchError, Loose, UnsupportedError, physical
from models.vectorized.building import Builder, Level, Operation, OperatorFunction, Value
from models.vectorized.moving import axis_number, literal, viewed

_FUNCTIONS: dict[int, Callable[..., Any]] = {
    Kind.SUM: np.add.reduce,
    Kind.MEAN: np.add.reduce,
    Kind.REDUCE_PROD: np.multiply.reduce,
    Kind.REDUCE_MAX: np.maximum.reduce,
    Kind.REDUCE_MIN: np.minimum.reduce,
    Kind.REDUCE_ANY: np.logical_or.reduce,
    Kind.REDUCE_ALL: np.logical_and.reduce,
}
#: Reductions for which equal numbers count once.
_IDEMPOTENT = {Kind.REDUCE_MAX, Kind.REDUCE_MIN, Kind.REDUCE_ANY, Kind.REDUCE_ALL, Kind.MEAN}
#: Up to so many numbers, maxima are taken number by number, for all rows at a time.
_SHORT = 16


def _reduce(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    rank = len(value.axes)
    given = operation.constant(1, builder.rows).reshape(-1).tolist()
    over = sorted({axis_number(int(number), rank) for number in given})
    keep = bool(operation.option(0))
    if operation.kind not in _IDEMPOTENT and any(isinstance(value.axes[at], Loose) for at in over):
        raise FixedBatchError("a sum over what may be rows")
    axes = tuple(
        1 if at in over else axis for at, axis in enumerate(value.axes) if keep or at not in over
    )
    out = builder.output(operation, axes, value.level, nonnegative=value.nonnegative)
    _add_reduction(builder, operation.kind, value, over, out)
    if operation.kind == Kind.MEAN:
        count = prod(physical([value.axes[at] for at in over], builder.rows))
        builder.do(value.level, np.multiply, out.array, np.array(1 / count, np.float32), out.array)
    return [out]


def _add_reduction(builder: Builder, kind: int, value: Value, over: list[int], out: Value) -> None:
    array, level = value.array, value.level
    places = [at + value.lead for at in over]
    if not places:
        builder.do(level, np.copyto, out.array, array)
        return
    if array.dtype == np.float32 and kind in (Kind.SUM, Kind.MEAN):
        add_sum(builder, level, array, places, out.array)
        return
    last = places == [array.ndim - 1]
    if last and kind in (Kind.REDUCE_MAX, Kind.REDUCE_MIN) and 1 < array.shape[-1] <= _SHORT:
        function = np.maximum if kind == Kind.REDUCE_MAX else np.minimum
        target = out.array.reshape(array.shape[:-1])
        found = array[..., 0]
        for number in range(1, array.shape[-1]):
            builder.do(level, function, found, array[..., number], target)
            found = target
        return
    kept = [length for at, length in enumerate(array.shape) if at not in places]
    builder.do(level, _FUNCTIONS[kind], array, tuple(places), None, out.array.reshape(kept))


def add_sum(builder: Builder, level: Level, array: Array, places: list[int], out: Array) -> None:
    """Adds a sum over neighbouring axes as a product with ones, several times faster than `sum`."""
    count = prod(array.shape[at] for at in places)
    before, after = array.shape[: places[0]], array.shape[places[-1] + 1 :]
    kept = [length for at, length in enumerate(array.shape) if at not in places]
    merged = None
    if places == list(range(places[0], places[-1] + 1)) and count:
        merged = viewed(array, (prod(before), count, prod(after)))
    if merged is None or array.size == 0:
        builder.do(level, np.add.reduce, array, tuple(places), None, out.reshape(kept))
    elif prod(after) == 1 and (target := viewed(out, (prod(kept),))) is not None:
        ones = np.ones(count, np.float32)
        builder.do(level, np.matmul, merged[:, :, 0], ones, target)
    elif (target := viewed(out, (prod(before), 1, prod(after)))) is not None:
        ones = np.ones((1, count), np.float32)
        builder.do(level, np.matmul, ones, merged, target)
    else:
        builder.do(level, np.add.reduce, array, tuple(places), None, out.reshape(kept))


def _arg(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    at = axis_number(int(operation.constant(1, builder.rows).reshape(-1)[0]), len(value.axes))
    literal(value.axes, at)
    axes = (*value.axes[:at], *value.axes[at + 1 :])
    out = builder.output(operation, axes, value.level)
    function = np.argmax if operation.kind == Kind.ARG_MAX else np.argmin
    builder.do(value.level, _arg_step, function, value.array, at + value.lead, out.array)
    return [out]


def _arg_step(function: Callable[..., Any], array: Array, axis: int, out: Array) -> None:
    np.copyto(out, function(array, axis), casting="unsafe")


def _softmax(builder: Builder, operation: Operation) -> Sequence[Value]:
    """Softmax over the last axis, and its logarithm: x - max, then e^x / Σ or x - ln Σ e^x."""
    value = operation.value(0)
    literal(value.axes, len(value.axes) - 1)
    if operation.kind == Kind.SOFTMAX and operation.real(0, 1.0) not in (0.0, 1.0):
        raise UnsupportedError("SOFTMAX with a temperature runs on an interpreter only")
    level, axes = value.level, value.axes
    out = builder.output(operation, axes, level, nonnegative=operation.kind == Kind.SOFTMAX)
    column: Axes = (*axes[:-1], 1)
    sums = builder.new(column, np.float32, level)
    last = out.array.ndim - 1
    _add_reduction(builder, Kind.REDUCE_MAX, value, [len(axes) - 1], sums)
    builder.do(level, np.subtract, value.array, sums.array, out.array)
    if operation.kind == Kind.SOFTMAX:
        builder.do(level, np.exp, out.array, out.array)
        add_sum(builder, level, out.array, [last], sums.array)
        builder.do(level, np.divide, out.array, sums.array, out.array)
    else:
        powers = builder.new(axes, np.float32, level)
        builder.do(level, np.exp, out.array, powers.array)
        add_sum(builder, level, powers.array, [last], sums.array)
        builder.do(level, np.log, sums.array, sums.array)
        builder.do(level, np.subtract, out.array, sums.array, out.array)
        builder.free(powers)
    builder.free(sums)
    return [out]


def _l2_normalization(builder: Builder, operation: Operation) -> Sequence[Value]:
    """x / max(|x|, 1e-6) over the last axis, as the interpreters do."""
    value = operation.value(0)
    literal(value.axes, len(value.axes) - 1)
    level = value.level
    out = builder.output(operation, value.axes, level)
    norms = builder.new((*value.axes[:-1], 1), np.float32, level)
    builder.do(level, np.square, value.array, out.array)
    add_sum(builder, level, out.array, [out.array.ndim - 1], norms.array)
    builder.do(level, np.sqrt, norms.array, norms.array)
    builder.do(level, np.maximum, norms.array, np.array(1e-6, np.float32), norms.array)
    builder.do(level, np.divide, value.array, norms.array, out.array)
    builder.free(norms)
    return [builder.activate(out, operation.option(0))]


def _cumsum(builder: Builder, operation: Operation) -> Sequence[Value]:
    value = operation.value(0)
    if operation.option(0) or operation.option(1):
        raise UnsupportedError("CUMSUM, exclusive or reversed, runs on an interpreter only")
    at = axis_number(int(operation.constant(1, builder.rows).reshape(-1)[0]), len(value.axes))
    literal(value.axes, at)
    out = builder.output(operation, value.axes, value.level)
    builder.do(value.level, np.add.accumulate, value.array, at + value.lead, None, out.array)
    return [out]


OPERATORS: dict[int, OperatorFunction] = {
    **dict.fromkeys(_FUNCTIONS, _reduce),
    Kind.ARG_MAX: _arg,
    Kind.ARG_MIN: _arg,
    Kind.SOFTMAX: _softmax,
    Kind.LOG_SOFTMAX: _softmax,
    Kind.CUMSUM: _cumsum,
    Kind.L2_NORMALIZATION: _l2_normalization,
}
