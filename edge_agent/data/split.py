"""Splits: which rows of a device are learned from, and which are held out for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Index = NDArray[np.integer[Any]]

#: `time`: the latest rows of each group are held out. `random`: some of each group. `stratified`:
#: some of each class in each group.
Split = Literal["time", "random", "stratified"]

#: The same rows are held out at every start: no row that was learned from is measured later.
_SEED = 20_170_217


def split_rows(
    how: Split, group: Array, rows: Index, test_fraction: float, classes: Array | None = None
) -> tuple[Index, Index]:
    """Returns the indexes of the rows to learn from and of those to hold out, ascending.

    Each group gives `test_fraction` of its rows, rounded to the nearest whole number; unless the
    fraction is 1, it keeps at least one row to learn from.

    Args:
        how: which of a group's rows are held out.
        group: shape (n,); rows of equal value form a group, in the order of time. Groups may be
            interleaved.
        rows: numbers of the rows in the data file, shape (n,). With `random` and `stratified` the
            number decides: a file that grows keeps most of its rows on their side.
        test_fraction: 0 to 1.
        classes: class of each row, shape (n,); for `stratified`.
    """
    if how == "time":
        key: Array = np.arange(len(group))
    else:
        size = int(rows.max(initial=-1)) + 1
        key = np.random.default_rng(_SEED).random(size)[rows]
    if how == "stratified" and classes is not None:
        group = joined_codes([group, classes])
    _, code, sizes = np.unique(group, return_inverse=True, return_counts=True)
    held_out = num_held_out(sizes, test_fraction)
    order = np.lexsort((key, code))
    position = np.empty(len(group), np.int64)
    position[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = position >= (sizes - held_out)[code]
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def num_held_out(sizes: Array, test_fraction: float) -> Array:
    """Returns how many rows each group of these sizes gives; see `split_rows`."""
    held_out = np.floor(sizes * test_fraction + 0.5).astype(np.int64)
    return np.minimum(held_out, sizes - 1) if test_fraction < 1 else held_out


def joined_codes(columns: Sequence[Array]) -> Array:
    """Returns one number per row, equal where all columns are equal.

    Args:
        columns: at least one, each of shape (n,), numbers or texts.
    """
    joined = np.unique(columns[0], return_inverse=True)[1]
    for column in columns[1:]:
        values, code = np.unique(column, return_inverse=True)
        joined = np.unique(joined * len(values) + code, return_inverse=True)[1]
    return joined
