"""Rows of data as programs take them, and their cutting into calls of fixed batch sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.package.spec import TensorSpec

Array = NDArray[Any]
#: Column name -> array: the columns of a spec, and perhaps `weight`; all equally long.
Rows = Mapping[str, Array]


def row_count(rows: Rows) -> int:
    """Returns the number of rows."""
    return len(next(iter(rows.values()), ()))


def plan_calls(
    rows: int, sizes: Sequence[int], *, in_one: bool = False
) -> Iterator[tuple[int, int, int]]:
    """Returns the calls that cover `rows` rows: (first row, rows, batch size of the call).

    Each call takes the largest size that the rows fill. The remaining rows take the smallest size
    that covers them, unless most of that call would be padding and a smaller size exists.

    Args:
        rows: number of rows.
        sizes: batch sizes of the program.
        in_one: whether one call is to take all rows if a size covers them, whatever the padding.
    """
    start = 0
    if in_one and (covering := [size for size in sizes if size >= rows]):
        sizes = [min(covering)]
    while start < rows:
        left = rows - start
        covers = min((size for size in sizes if size >= left), default=0)
        fits = max((size for size in sizes if size <= left), default=0)
        size = covers if covers and (covers < 2 * left or not fits) else fits
        yield start, min(size, left), size
        start += size


def cut_rows(array: Array, tensor: TensorSpec, start: int, count: int, size: int) -> Array:
    """Returns `count` rows from `start` on, padded to `size` with copies of the first of them.

    The padding is copies and not zeros: it has weight 0, but 0 times the result of a layer on a row
    of zeros (a norm, the mean of a fully masked sequence) may be NaN.
    """
    part = array[start : start + count]
    if count == size:
        return np.ascontiguousarray(part, tensor.dtype)
    padded = np.empty((size, *tensor.shape), tensor.dtype)
    padded[:count] = part
    padded[count:] = padded[0]
    return padded
