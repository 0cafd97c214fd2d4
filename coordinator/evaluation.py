"""Measuring θ where the coordinator itself has data."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.errors import DataError
from models.metrics import Sums
from models.package import ModelPackage
from models.parameters import F32
from models.program import Array, Program, row_count
from models.spec import TensorSpec


def central_measure(path: Path, package: ModelPackage) -> Callable[[F32], Sums]:
    """A function from θ to sums of loss and metrics over the rows of `path`.

    Args:
        path: .npz with one array of shape (n, *shape) per input and target of the model, in the
            units of the spec before its mean and std are applied.
        package: whose program measures; a personal part is the initial one.

    Raises:
        DataError: no such file, or an array is missing, misshapen, not finite or empty.
        ModelError: no interpreter here.
    """
    spec = package.spec
    program = Program(package.program, spec, frozen=package.frozen)
    arrays = {tensor.name: _read(path, tensor) for tensor in spec.columns}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) != 1 or not row_count(arrays):
        raise DataError(f"{path}: arrays of {rows} rows; all need the same number, at least 1")
    return lambda theta: program.evaluate(package.whole(theta), arrays)


def _read(path: Path, tensor: TensorSpec) -> Array:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if tensor.name not in file:
                raise DataError(f"{path}: no array {tensor.name!r}; it has: {', '.join(file)}")
            raw = file[tensor.name]
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
    array: Array = values.astype(tensor.dtype)
    return array
