"""Axes of a program's tensors, and which of them holds the rows of a batch.

A program is made for a fixed number of rows, which its shapes and constants repeat. Here the rows'
axis is followed from the inputs through every operator, so that the same program runs with any
number of rows. Where a program leaves open what an axis is, `FixedBatchError` says so, and it runs
with the number of rows that it was made for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ModelError

Array = NDArray[Any]


class UnsupportedError(ModelError):
    """A program has something that runs on an interpreter only."""


class FixedBatchError(Exception):
    """The program cannot be followed with another number of rows than its own."""


class Batch(NamedTuple):
    """Axis of `outer` times the rows times `inner` numbers, in this order (row-major)."""

    outer: int
    inner: int


class Loose(NamedTuple):
    """Axis of equal numbers, `size` in the program: one number here, which broadcasts.

    Constants have such axes where nothing says yet whether they are rows.
    """

    size: int


#: A number: an axis of that length, whatever the number of rows.
Axis = int | Batch | Loose
Axes = tuple[Axis, ...]


class Rows(NamedTuple):
    """Number of rows: of the call, and of the program as it was made.

    `follow`: whether axes of rows are told from others; if not, the numbers are the same.
    """

    now: int
    recorded: int
    follow: bool


def recorded(axes: Sequence[Axis], rows: Rows) -> tuple[int, ...]:
    """Returns the shape in the program."""
    return tuple(_length(axis, rows.recorded, loose=True) for axis in axes)


def physical(axes: Sequence[Axis], rows: Rows) -> tuple[int, ...]:
    """Returns the shape of the array that holds the numbers."""
    return tuple(_length(axis, rows.now, loose=False) for axis in axes)


def _length(axis: Axis, rows: int, *, loose: bool) -> int:
    if isinstance(axis, Batch):
        return axis.outer * rows * axis.inner
    if isinstance(axis, Loose):
        return axis.size if loose else 1
    return axis


def broadcast(shapes: Iterable[Axes], rows: Rows) -> Axes:
    """Returns the axes of what tensors of these axes give element by element."""
    shapes = list(shapes)
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(axes)) + axes for axes in shapes]
    return tuple(_joined(column, rows) for column in zip(*padded, strict=True))


def same_axis(axes: Iterable[Axis], rows: Rows) -> Axis:
    """Returns what an axis is that several tensors have in common; 1 does not broadcast.

    Raises:
        FixedBatchError: it is rows in one of them and something else in another.
    """
    axes = list(axes)
    if len({_length(axis, rows.recorded, loose=True) for axis in axes}) != 1:
        raise ModelError(f"the program is damaged: axes {axes} of one operator should be equal")
    return _joined(axes, rows)


def _joined(axes: Sequence[Axis], rows: Rows) -> Axis:
    lengths = {_length(axis, rows.recorded, loose=True) for axis in axes} - {1}
    if len(lengths) > 1:
        raise ModelError(f"the program is damaged: axes {axes} do not broadcast")
    batches = {axis for axis in axes if isinstance(axis, Batch)}
    fixed = {axis for axis in axes if isinstance(axis, int) and axis != 1}
    if len(batches) > 1 or (batches and fixed):
        raise FixedBatchError(f"rows meet something else: {axes}")
    loose: set[Axis] = {axis for axis in axes if isinstance(axis, Loose)}
    choice: set[Axis] = set(batches or fixed or loose)
    return next(iter(choice), 1)


def reshaped(axes: Axes, target: tuple[int, ...], rows: Rows) -> Axes:
    """Returns the axes after a reshape to `target`, a shape in the program.

    The rows keep their place among the numbers in row-major order, whatever the axes around them.
    """
    before = recorded(axes, rows)
    if prod(before) != prod(target):
        raise ModelError(f"the program is damaged: a reshape of {before} to {target}")
    found: list[Axis] = list(target)
    for at, axis in enumerate(axes):
        if isinstance(axis, int):
            continue
        outer = prod(before[:at]) * (axis.outer if isinstance(axis, Batch) else 1)
        count = rows.recorded if isinstance(axis, Batch) else axis.size
        place, part = _place(target, outer, count)
        if not isinstance(found[place], int):
            raise FixedBatchError("two axes of rows become one")
        if isinstance(axis, Batch):
            found[place] = part
        elif part == Batch(1, 1):
            found[place] = axis
        else:
            raise FixedBatchError("equal numbers become a part of an axis")
    return tuple(found)


def _place(target: tuple[int, ...], outer: int, count: int) -> tuple[int, Batch]:
    """Returns the axis of `target` with `outer` numbers before and `count` steps, and its parts."""
    before = 1
    for place, length in enumerate(target):
        if before <= outer and before * length >= outer * count and length > 1:
            own, remainder = divmod(outer, before)
            if not remainder and length % (own * count) == 0:
                return place, Batch(own, length // (own * count))
        before *= length
    raise FixedBatchError(f"rows are scattered over the axes {target}")


def loosened(array: Array, rows: Rows) -> tuple[Array, Axes]:
    """Returns a constant with each axis that may be rows cut to one number, and its axes."""
    axes: list[Axis] = list(array.shape)
    if rows.follow and array.size:
        for at, length in enumerate(array.shape):
            first = array.take([0], axis=at)
            whole = np.broadcast_to(first, array.shape)
            if length % rows.recorded == 0 and np.array_equal(whole, array):
                axes[at] = Loose(length)
        keep = tuple(slice(0, 1) if isinstance(axis, Loose) else slice(None) for axis in axes)
        array = array[keep]
    return array, tuple(axes)
