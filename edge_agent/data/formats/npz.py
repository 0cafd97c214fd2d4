"""Reader of .npz files: arrays that become a model's inputs and targets, checked by its spec."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.formats.cells import Numbers, class_parser, unread_class
from edge_agent.data.formats.sources import example, key_of
from edge_agent.data.places import Places
from edge_agent.data.split import joined_codes
from edge_agent.data.table import Array, Table, feature_names, tensors, too_many_rows, unknown_name
from fedge.errors import DataError
from models.package.npz import Npz, open_npz
from models.package.spec import ModelSpec, TensorSpec


def read_npz(paths: Sequence[Path], whole: Path, config: DataConfig, spec: ModelSpec) -> Table:
    """Reads the arrays that the spec needs, in their stored types; texts become classes.

    Args:
        paths: files of the same arrays, in their order.
        whole: all of them, for messages.
        config: of the data.
        spec: of the model.

    Raises:
        DataError: not such a file, an array is missing, or its type, shape or length is wrong.
    """
    names = {tensor.name: _source(tensor, config, spec) for tensor in tensors(config, spec)}
    found: dict[str, list[Array]] = {tensor.name: [] for tensor in tensors(config, spec)}
    groups: list[list[Array]] = [[] for _ in config.groups]
    places, rows = Places("row"), 0
    for path in paths:
        with open_npz(path) as file:
            reader = _Reader(file, config, spec, rows)
            # Targets first: their name is the one that a person is most likely to have wrong.
            for tensor in sorted(tensors(config, spec), key=lambda one: one in spec.inputs):
                found[tensor.name].append(reader.read(names[tensor.name], tensor))
            for name, parts in zip(config.groups, groups, strict=True):
                parts.append(reader.read_group(name))
        places.begin(path)
        places.extend(range(reader.rows))
        rows += reader.rows
    columns = {t.name: feature_names(t, names[t.name]) for t in tensors(config, spec)}
    joined = [_joined(parts) for parts in groups]
    return Table(
        whole,
        {name: _joined(parts) for name, parts in found.items()},
        joined_codes(joined) if len(joined) > 1 else next(iter(joined), None),
        columns,
        {t.name: [names[t.name]] for t in spec.inputs},
        places,
    )


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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

    def __init__(self, file: Npz, config: DataConfig, spec: ModelSpec, before: int) -> None:
        self._file = file
        self._path = file.path
        self._config = config
        self._spec = spec
        self._before = before
        self._first: tuple[str, int] | None = None

    @property
    def rows(self) -> int:
        """Number of rows in the archive."""
        return self._first[1] if self._first else 0

    def read(self, name: str, tensor: TensorSpec) -> Array:
        """Returns an array of numbers, shape (n, *tensor.shape)."""
        shape, dtype = self._header(name, tensor)
        is_text = dtype.kind in "US" and bool(tensor.classes)
        if dtype.kind not in "biuf" and not is_text:
            raise DataError(f"{self._path}: array {name!r} holds {dtype}, expected numbers")
        # (n, 28, 28) serves (28, 28, 1): an axis of length 1 is a matter of taste.
        if [side for side in shape[1:] if side != 1] != [
            side for side in tensor.shape if side != 1
        ]:
            raise DataError(
                f"{self._path}: array {name!r} has shape {shape}; "
                f"{tensor.name} needs ({', '.join(('rows', *map(str, tensor.shape)))})"
            )
        found = self._file.read(name).reshape(shape[0], *tensor.shape)
        return self._classes(name, found, tensor) if is_text else found

    def _classes(self, name: str, texts: Array, tensor: TensorSpec) -> Array:
        """Returns the classes that texts name, as float64; NaN where a text means no reading."""
        if texts.dtype.kind == "S":
            texts = np.char.decode(texts, "utf-8", "replace")
        source = self._config.target_sources.get(tensor.name)
        ignore_case = source is not None and source.ignore_case
        parse = class_parser(tensor, Numbers(), ignore_case=ignore_case)
        known, places = np.unique(texts, return_inverse=True)
        classes = np.empty(len(known))
        for index, text in enumerate(known.tolist()):
            try:
                classes[index] = parse(text)
            except ValueError as error:
                row = int(np.argmax(texts.reshape(-1) == text)) // max(1, prod(tensor.shape))
                why = unread_class(text, tensor, key_of(tensor))
                raise DataError(
                    f"{self._path}: row {row}, column {name!r}: {text[:40]!r} is {why}"
                ) from error
        return classes[places].reshape(texts.shape)

    def read_group(self, name: str) -> Array:
        """Returns an array of whole numbers or text, shape (n,)."""
        shape, dtype = self._header(name, None)
        if prod(shape[1:]) != 1 or dtype.kind not in "biuSU":
            raise DataError(
                f"{self._path}: array {name!r} ({dtype}, shape {shape}) cannot be the group: "
                "expected one whole number or text per row"
            )
        return self._file.read(name).reshape(shape[0])

    def _header(
        self, name: str, tensor: TensorSpec | None
    ) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        if name not in self._file.names:
            raise self._unknown(name, tensor)
        shape, dtype = self._file.header(name)
        self._check_rows(name, shape[0])
        return shape, dtype

    def _unknown(self, name: str, tensor: TensorSpec | None) -> DataError:
        error = unknown_name(self._path, "array", name, self._file.names)
        if tensor is None or not self._file.names:
            return error
        yours = example(tensor, self._spec, array="NAME")
        return DataError(f"{error}; to read another write `{yours}` into data")

    def _check_rows(self, name: str, rows: int) -> None:
        limit = self._config.max_rows
        if self._before + rows > limit:
            raise too_many_rows(self._path, str(self._before + rows), limit)
        first, first_rows = self._first = self._first or (name, rows)
        if rows != first_rows:
            raise DataError(
                f"{self._path}: array {name!r} has {rows} rows, array {first!r} has {first_rows}"
            )
