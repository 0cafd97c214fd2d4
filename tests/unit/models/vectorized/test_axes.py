"""The axis of rows, followed through a program."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from models.vectorized.axes import (
    Array,
    Axes,
    Batch,
    FixedBatchError,
    Loose,
    Rows,
    broadcast,
    loosened,
    physical,
    recorded,
    reshaped,
    same_axis,
)
from tests.unit.models.vectorized.running import BATCH, rows_of

_ROWS = rows_of(5, 32)


def test_a_batch_axis_has_the_calls_length() -> None:
    axes: Axes = (BATCH, 7, Batch(2, 3), Loose(32))
    assert recorded(axes, _ROWS) == (32, 7, 192, 32)
    assert physical(axes, _ROWS) == (5, 7, 30, 1)


@pytest.mark.parametrize(
    ("axes", "target", "found"),
    [
        ((BATCH, 28, 28), (32, 784), (BATCH, 784)),
        ((BATCH, 784), (1, 32, 28, 28), (1, BATCH, 28, 28)),
        ((BATCH, 24, 6, 40), (4608, 40), (Batch(1, 144), 40)),
        ((Batch(1, 144), 32), (32, 12, 48, 8), (BATCH, 12, 48, 8)),
        ((22, 10, BATCH, 24), (1, 22, 10, 768), (1, 22, 10, Batch(1, 24))),
        ((12, BATCH), (384,), (Batch(12, 1),)),
        ((Batch(12, 1),), (12, 32), (12, BATCH)),
        ((Loose(32), 8), (32, 1, 8), (Loose(32), 1, 8)),
    ],
)
def test_rows_keep_their_place_in_a_reshape(
    axes: Axes, target: tuple[int, ...], found: Axes
) -> None:
    assert reshaped(axes, target, _ROWS) == found


def test_rows_that_a_reshape_scatters_are_refused() -> None:
    with pytest.raises(FixedBatchError, match="scattered"):
        reshaped((BATCH, 3), (4, 24), _ROWS)
    with pytest.raises(FixedBatchError):
        reshaped((Loose(32), 3), (96,), _ROWS)
    with pytest.raises(ModelError, match="reshape of"):
        reshaped((BATCH, 3), (32, 4), _ROWS)


@given(
    before=st.lists(st.integers(1, 3), max_size=3),
    after=st.lists(st.integers(1, 3), max_size=3),
    now=st.integers(1, 9),
    data=st.data(),
)
def test_reshapes_for_other_numbers_of_rows_move_no_number(
    before: list[int], after: list[int], now: int, data: st.DataObject
) -> None:
    """Neighbouring axes are merged at random: the array of other rows merges the same way."""
    rows = rows_of(now, 8)
    axes: Axes = (*before, BATCH, *after)
    shape = recorded(axes, rows)
    cuts = data.draw(st.sets(st.integers(1, max(1, len(shape) - 1))))
    edges = [0, *sorted(cut for cut in cuts if cut < len(shape)), len(shape)]
    merged = tuple(prod(shape[start:stop]) for start, stop in pairwise(edges))
    found = reshaped(axes, merged, rows)
    assert recorded(found, rows) == merged
    labels = _row_numbers(axes, rows).reshape(physical(found, rows))
    np.testing.assert_array_equal(labels, _row_numbers(found, rows))
    assert reshaped(found, shape, rows) == axes


def _row_numbers(axes: Axes, rows: Rows) -> Array:
    """The row that each number of such a tensor belongs to."""
    shape = physical(axes, rows)
    at = next(at for at, axis in enumerate(axes) if isinstance(axis, Batch))
    batch = axes[at]
    assert isinstance(batch, Batch)
    own = np.tile(np.repeat(np.arange(rows.now), batch.inner), batch.outer)
    return np.broadcast_to(own.reshape(-1, *(1,) * (len(shape) - at - 1)), shape)


def test_equal_numbers_become_what_they_meet() -> None:
    assert broadcast([(Loose(32), 8), (BATCH, 8)], _ROWS) == (BATCH, 8)
    assert broadcast([(Loose(32),), (32,)], _ROWS) == (32,)
    assert broadcast([(8,), (Loose(32), 1)], _ROWS) == (Loose(32), 8)
    assert same_axis([Loose(32), BATCH], _ROWS) == BATCH


def test_rows_do_not_meet_other_axes_of_their_length() -> None:
    with pytest.raises(FixedBatchError, match="rows meet"):
        broadcast([(BATCH, 8), (32, 8)], _ROWS)
    with pytest.raises(ModelError, match="do not broadcast"):
        broadcast([(BATCH, 8), (BATCH, 7)], _ROWS)


def test_constants_are_loose_where_their_numbers_are_equal() -> None:
    column = np.tile(np.arange(8, dtype=np.float32), (32, 1))
    array, axes = loosened(column, _ROWS)
    assert axes == (Loose(32), 8)
    assert array.tolist() == [list(range(8))]
    assert loosened(np.arange(32), _ROWS)[1] == (32,)
    assert loosened(np.zeros(33), _ROWS)[1] == (33,)
