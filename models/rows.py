"""Rows of a .npz file for programs in the middle or on a workstation, scaled by the spec.

Devices read their own data with `edge_agent.data`, which knows columns, groups and much more.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.errors import DataError
from models.parameters import F64
from models.program import Array, Rows
from models.spec import TensorSpec

_ZIP = b"PK"
_INT32 = np.iinfo(np.int32)


def read_rows(path: Path, columns: Sequence[TensorSpec]) -> Rows:
    """One array per column, in the spec's types, with mean, std and missing values applied.

    Args:
        path: .npz with one array of shape (n, *shape) per column, in the units of the spec;
            `y` serves as `target` too, as on devices.
        columns: what is wanted of it.

    Raises:
        DataError: no such file, or an array is missing, misshapen, not finite, empty or
            of classes that do not exist.
    """
    arrays = {tensor.name: _read(path, tensor) for tensor in columns}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise DataError(f"{path}: arrays of {counts} rows; all need the same number, at least 1")
    return arrays


def array_name(tensor: TensorSpec, names: Sequence[str]) -> str:
    """Which of the arrays of a file holds a column."""
    return (
        "y" if tensor.name == "target" and "target" not in names and "y" in names else tensor.name
    )


def _read(path: Path, tensor: TensorSpec) -> Array:
    try:
        data = path.read_bytes()
        if not data.startswith(_ZIP):
            raise DataError(f"{path}: not an .npz file: save the arrays with numpy.savez")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            name = array_name(tensor, list(file))
            if name not in file:
                raise DataError(f"{path}: no array {name!r}; it has: {', '.join(file)}")
            raw = file[name]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: no .npz file: {error}") from error
    if raw.shape[1:] != tensor.shape or raw.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: array {tensor.name!r} is {raw.dtype} of {raw.shape}, "
            f"expected numbers of shape (rows, {', '.join(map(str, tensor.shape))})"
        )
    values = raw.astype(np.float64)
    if tensor.mean:
        values = (values - np.array(tensor.mean)) / np.array(tensor.std)
    if tensor.missing is not None:
        values[np.isnan(values)] = tensor.missing
    if not np.isfinite(values).all():
        raise DataError(f"{path}: array {tensor.name!r} has NaN or infinity")
    if tensor.dtype == "int32":
        _check_whole(path, tensor, values)
    array: Array = values.astype(tensor.dtype)
    return array


def _check_whole(path: Path, tensor: TensorSpec, values: F64) -> None:
    """Refuses classes that do not exist, which would count as rightly predicted without a loss."""
    top = len(tensor.classes) - 1 if tensor.classes else _INT32.max
    low = 0 if tensor.classes else _INT32.min
    bad = (values != np.rint(values)) | (values < low) | (values > top)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        what = f"one of {len(tensor.classes)} classes" if tensor.classes else "a whole number"
        raise DataError(
            f"{path}: row {row} of {tensor.name!r} holds {values[bad][0]:g}, "
            f"not {what}, {low} to {top}"
        )
