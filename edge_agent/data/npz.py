"""Reader of .npz files: arrays that become a model's inputs and targets, checked by its spec."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.split import joined_codes
from edge_agent.data.table import Array, Table, feature_names, tensors, too_many_rows, unknown_name
from fedge.errors import DataError
from models.package.npz import Npz, open_npz
from models.package.spec import ModelSpec, TensorSpec


def read_npz(path: Path, config: DataConfig, spec: ModelSpec) -> Table:
    """Reads the arrays that the spec needs, in their stored types.

    Raises:
        DataError: not such a file, an array is missing, or its type, shape or length is wrong.
    """
    with open_npz(path) as file:
        reader = _Reader(file, config.max_rows)
        names = {tensor.name: _source(tensor, config, spec) for tensor in tensors(config, spec)}
        # Targets first: their name is the one that a person is most likely to have wrong.
        order = sorted(tensors(config, spec), key=lambda tensor: tensor in spec.inputs)
        arrays = {tensor.name: reader.read(names[tensor.name], tensor) for tensor in order}
        groups = [reader.read_group(name) for name in config.groups]
        group = joined_codes(groups) if len(groups) > 1 else next(iter(groups), None)
    columns = {t.name: feature_names(t, names[t.name]) for t in tensors(config, spec)}
    return Table(path, arrays, group, columns, {t.name: [names[t.name]] for t in spec.inputs})


def _source(tensor: TensorSpec, config: DataConfig, spec: ModelSpec) -> str:
    """Returns the name of the array that a column of the spec is read from."""
    if tensor in spec.inputs:
        source = config.inputs.get(tensor.name)
        return source.array if source and source.array else tensor.name
    if tensor in spec.targets:
        target = config.target_sources.get(tensor.name)
        default = "y" if tensor.name == "target" else tensor.name
        return target.array if target and target.array else default
    return config.weight.array if config.weight and config.weight.array else tensor.name


class _Reader:
    """Reader of the arrays of one archive; all must have as many rows as the first."""

    def __init__(self, file: Npz, max_rows: int) -> None:
        self._file = file
        self._path = file.path
        self._max_rows = max_rows
        self._first: tuple[str, int] | None = None

    def read(self, name: str, tensor: TensorSpec) -> Array:
        """Returns an array of numbers, shape (n, *tensor.shape)."""
        shape, dtype = self._header(name)
        if dtype.kind not in "biuf":
            raise DataError(f"{self._path}: array {name!r} holds {dtype}, expected numbers")
        # (n, 28, 28) serves (28, 28, 1): an axis of length 1 is a matter of taste.
        if [side for side in shape[1:] if side != 1] != [
            side for side in tensor.shape if side != 1
        ]:
            raise DataError(
                f"{self._path}: array {name!r} has shape {shape}; "
                f"{tensor.name} needs ({', '.join(('rows', *map(str, tensor.shape)))})"
            )
        return self._file.read(name).reshape(shape[0], *tensor.shape)

    def read_group(self, name: str) -> Array:
        """Returns an array of whole numbers or text, shape (n,)."""
        shape, dtype = self._header(name)
        if prod(shape[1:]) != 1 or dtype.kind not in "biuSU":
            raise DataError(
                f"{self._path}: array {name!r} ({dtype}, shape {shape}) cannot be the group: "
                "expected one whole number or text per row"
            )
        return self._file.read(name).reshape(shape[0])

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        if name not in self._file.names:
            raise unknown_name(self._path, "array", name, self._file.names)
        shape, dtype = self._file.header(name)
        self._check_rows(name, shape[0])
        return shape, dtype

    def _check_rows(self, name: str, rows: int) -> None:
        if rows > self._max_rows:
            raise too_many_rows(self._path, str(rows), self._max_rows)
        first, first_rows = self._first = self._first or (name, rows)
        if rows != first_rows:
            raise DataError(
                f"{self._path}: array {name!r} has {rows} rows, array {first!r} has {first_rows}"
            )
