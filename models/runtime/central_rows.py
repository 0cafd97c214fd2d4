"""Reads rows of a .npz file on the coordinator or a workstation, and scales them by the spec.

Devices read their own data with `edge_agent.data`, which also reads columns and groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from fedge.errors import DataError
from models.package.npz import Npz, open_npz
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.rows import Array, Rows

_INT32 = np.iinfo(np.int32)
_SHOWN_CLASSES = 12
_LARGEST = np.finfo(np.float32).max


def read_rows(path: Path, spec: ModelSpec, *, targets: bool = True) -> Rows:
    """Returns one array per column of the spec: scaled, missing values filled, of its dtype.

    Args:
        path: .npz with one array of shape (n, *shape) per column, in the units of the spec;
            `y` serves as `target` too, as on devices.
        spec: the model's spec.
        targets: whether targets are read too.

    Raises:
        DataError: the file is missing or damaged; or an array is missing, empty, of the wrong
            shape, not finite, or holds classes that do not exist.
    """
    columns = spec.columns if targets else spec.inputs
    with open_npz(path) as file:
        arrays = {tensor.name: _read(file, spec, tensor) for tensor in columns}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise DataError(
            f"{path}: arrays have different numbers of rows, or none: {counts}; "
            "all need the same number, at least 1"
        )
    return arrays


def has_targets(path: Path, spec: ModelSpec) -> bool:
    """Whether the file has an array for each target.

    Raises:
        DataError: not an .npz file.
    """
    with open_npz(path) as file:
        return all(_array_name(target, file.names) in file.names for target in spec.targets)


def first_wrong(
    values: Array, classes: int, names: Sequence[str] = ()
) -> tuple[int, int, str] | None:
    """Returns the first number that an int32 column cannot hold: row, index in the row, problem.

    A program does not fail on a class that does not exist: its loss and gradient are 0 or absurd.

    Args:
        values: of any numeric dtype, shape (n, ...).
        classes: number of classes (`ModelSpec.class_count`); 0 for other integers.
        names: of the classes, where they have any.
    """
    low, high = (0, classes - 1) if classes else (int(_INT32.min), int(_INT32.max))
    flat = values.reshape(len(values), prod(values.shape[1:]))
    bad = (flat < low) | (flat > high)
    if flat.dtype.kind == "f":
        bad |= flat != np.rint(flat)
    if not bad.any():
        return None
    row, place = map(int, np.argwhere(bad)[0])
    what = f"one of {classes} classes" if classes else "a whole number"
    value = float(flat[row, place])
    problem = f"{value:.15g} is not {what}, {low} to {high}"
    if names:
        more = ", …" if len(names) > _SHOWN_CLASSES else ""
        problem += f" ({', '.join(names[:_SHOWN_CLASSES])}{more})"
    if classes and value == classes and not (flat == 0).any():
        problem += "; does the file count classes from 1?"
    return row, place, problem


def _array_name(tensor: TensorSpec, names: Sequence[str]) -> str:
    """Returns the name of the array in the file that holds a column."""
    return (
        "y" if tensor.name == "target" and "target" not in names and "y" in names else tensor.name
    )


def _read(file: Npz, spec: ModelSpec, tensor: TensorSpec) -> Array:
    name = _array_name(tensor, file.names)
    if name not in file.names:
        raise DataError(f"{file.path}: no array {name!r}; it has: {', '.join(file.names)}")
    shape, dtype = file.header(name)
    if shape[1:] != tensor.shape or dtype.kind not in "fiu":
        raise DataError(
            f"{file.path}: array {name!r} is {dtype} of {shape}, "
            f"expected numbers of shape ({', '.join(('rows', *map(str, tensor.shape)))})"
        )
    values = file.read(name).astype(np.float64)
    if tensor.mean:
        values = (values - np.array(tensor.mean)) / np.array(tensor.std)
    if tensor.missing is not None:
        values[np.isnan(values)] = tensor.missing
    if not (np.abs(values) <= _LARGEST).all():
        raise DataError(f"{file.path}: array {name!r} has NaN or infinity")
    if tensor.dtype == "int32":
        wrong = first_wrong(values, spec.class_count(tensor), tensor.classes)
        if wrong is not None:
            raise DataError(f"{file.path}: array {name!r}, row {wrong[0]}: {wrong[2]}")
    array: Array = values.astype(tensor.dtype)
    return array
