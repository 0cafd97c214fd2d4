"""The client of each row, as a person has it: whole numbers or texts, in one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_agent.data.table import Array
from fedge.errors import DataError

#: Name of the column, or array, with the client of each row.
CLIENT_ID = "client_id"
_NUMBERS = (int, np.integer, np.bool_)
_EXPECTED = "expected one whole number or text a row"


def read_client_ids(values: Any) -> Array:
    """Returns the client of each row, shape (n,), whole numbers or texts.

    Args:
        values: likewise; may be a list, or an array of objects as tables hold texts.

    Raises:
        DataError: a row has no client; or a number and a text read the same, so that it cannot be
            told whether they are one client.
    """
    array = _array(values)
    if array.ndim == 1 and array.dtype.kind == "O":
        array = _of_objects(array.tolist())
    if array.ndim == 1 and array.dtype.kind == "f" and np.isnan(array).any():
        raise _no_client(int(np.isnan(array).argmax()), float("nan"))
    if array.ndim != 1 or array.dtype.kind not in "biuSU":
        raise DataError(f"{CLIENT_ID} is {array.dtype} of shape {array.shape}, {_EXPECTED}")
    return array


def _array(values: Any) -> Array:
    if isinstance(values, list | tuple) and not any(
        isinstance(value, list | tuple | np.ndarray) for value in values
    ):
        # As numpy would make texts of all values beside one text: of 1, and of NaN.
        array: Array = np.empty(len(values), object)
        array[:] = values
        return array
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{CLIENT_ID}: the rows differ in length, {_EXPECTED}") from error


def _of_objects(values: Sequence[Any]) -> Array:
    for row, value in enumerate(values):
        if not isinstance(value, (str, *_NUMBERS)):
            raise _no_client(row, value)
    texts = {value for value in values if isinstance(value, str)}
    numbers = {str(value) for value in values if not isinstance(value, str)}
    if both := sorted(texts & numbers):
        raise DataError(
            f"{CLIENT_ID} has {both[0][:40]} as a number and {both[0][:40]!r} as text: one client "
            "or two? give all as numbers, or all as texts"
        )
    array: Array = np.array(values, str) if texts else np.array(values)
    # Numbers beyond 64 bits stay objects.
    return array.astype(str) if array.dtype.kind == "O" else array


def _no_client(row: int, value: Any) -> DataError:
    return DataError(
        f"{CLIENT_ID}: row {row} is {str(value)[:40]} ({type(value).__name__}), {_EXPECTED}: "
        "give it a client, or leave the row out"
    )
