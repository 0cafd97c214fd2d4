"""LocalDataset: a device's own rows, ready for the program, and the way from file to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_agent.data.config import DataConfig, InputSource, TargetSource, WeightSource
from edge_agent.data.faults import FAR_OFF, largest_number
from edge_agent.data.files import data_files
from edge_agent.data.normalise import Scale, conversion, known_scales, scales
from edge_agent.data.places import Places
from edge_agent.data.read_options import ReadOptions
from edge_agent.data.split import Split, num_held_out, split_rows
from edge_agent.data.table import Array, EmptyDataError, Index, Table, chunks, tensors
from edge_agent.data.targets import row_classes
from edge_agent.data.usable import all_rows, in_time, usable_rows
from fedge.errors import DataError
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.central_rows import first_wrong
from models.runtime.rows import Rows

__all__ = [
    "DataConfig",
    "EmptyDataError",
    "InputSource",
    "LocalDataset",
    "TargetSource",
    "WeightSource",
    "build_dataset",
    "load_dataset",
    "read_ready",
    "read_table",
]

log = logging.getLogger(__name__)

Part = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class LocalDataset:
    """Rows in the types and shapes of a spec, read-only.

    Rows are stored training part first, so that both parts are views and cost no memory.

    Attributes:
        arrays: per column (inputs, targets, perhaps `weight`), shape (n, *shape), in the spec's
            dtype, scaled.
        train: indexes of the training rows, ascending.
        test: indexes of the held-out rows, ascending.
        rows: for each row its number in the data file, shape (n,).
        scales: what each scaled column was scaled by.
        absent: per input that may miss numbers the bits of those that are missing, uint8, shape
            (n, numbers a row / 8), as `np.packbits` makes them.
        columns: per column the names of its numbers in row-major order, for messages.
        places: of the file's rows; None: of no file.
        split: how the held-out rows were chosen.
    """

    arrays: Mapping[str, Array]
    train: Index
    test: Index
    rows: Index
    scales: Mapping[str, Scale]
    absent: Mapping[str, Array] = field(default_factory=dict)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: Places | None = None
    split: Split = "time"

    @property
    def num_train(self) -> int:
        """Number of training rows."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of held-out rows."""
        return len(self.test)

    def weight(self, name: Part) -> float:
        """Returns the sum of the weights of the training or the held-out rows."""
        rows = self.part(name)
        if "weight" in rows:
            return float(rows["weight"].sum(dtype=np.float64))
        return float(self.num_train if name == "train" else self.num_test)

    def part(self, name: Part) -> Rows:
        """The training or the held-out rows, oldest first in each group."""
        rows = slice(self.num_train) if name == "train" else slice(self.num_train, None)
        return {key: array[rows] for key, array in self.arrays.items()}

    def far_off(self) -> str:
        """Returns in words the number to learn from that is farthest off; empty: none is far."""
        rows = {name: part for name, part in self.part("train").items() if name != "weight"}
        found = largest_number(rows)
        if found is None or abs(found.value) <= FAR_OFF:
            return ""
        names = self.columns.get(found.tensor, ())
        column = names[found.column] if found.column < len(names) else found.tensor
        where = f" ({self.places.name(int(self.rows[found.row]))})" if self.places else ""
        scaled = " after scaling" if found.tensor in self.scales else ""
        return (
            f"column {column!r} has {found.value:.3g}{scaled}{where}, where models take numbers "
            "around 0: a fault of the data, or another unit?"
        )


def load_dataset(
    config: DataConfig, spec: ModelSpec, base: Path, state_dir: Path | None = None
) -> LocalDataset:
    """The device's data as configured.

    Args:
        config: what to read and how.
        spec: what the program expects.
        base: folder that `config.path` is relative to.
        state_dir: where a scale measured on the device is kept; None keeps nothing.

    Raises:
        EmptyDataError: no usable row.
        DataError: the file is missing or does not hold what was configured.
    """
    table = read_ready(config, spec, base, state_dir)
    return build_dataset(table, config, spec, state_dir, own=True)


def read_ready(
    config: DataConfig, spec: ModelSpec, base: Path, state_dir: Path | None = None
) -> Table:
    """The data file as its own device reads it: scaled at once, where the scale is known.

    Raises:
        DataError: see `load_dataset`.
    """
    return _read(config, spec, base, known_scales(config, spec, state_dir), ready=True)


def read_table(config: DataConfig, spec: ModelSpec, base: Path) -> Table:
    """The data file as it is, for a fleet that deals the rows of one file out to many agents.

    Raises:
        DataError: the file is missing, or arrays or columns are.
    """
    return _read(config, spec, base, known_scales(config, spec, None), ready=False)


def _read(
    config: DataConfig,
    spec: ModelSpec,
    base: Path,
    known: Mapping[str, Scale] | None,
    *,
    ready: bool,
) -> Table:
    whole, paths = data_files(config.path, base)
    _check_tensors(config, spec, whole)
    options = ReadOptions(whole, config, spec, known or {}, ready=ready and known is not None)
    if config.format == "npz":
        from edge_agent.data.formats.npz import read_npz

        return read_npz(paths, whole, config, spec)
    if config.window is None:
        return _read_rows(paths, options)
    from edge_agent.data.windows import OutOfOrderError

    try:
        return _read_rows(paths, options)
    except OutOfOrderError as error:
        log.info("%s: they are read again and sorted, which takes memory", error)
    return _read_rows(paths, replace(options, in_order=False))


def _read_rows(paths: Sequence[Path], options: ReadOptions) -> Table:
    if options.config.format == "csv":
        from edge_agent.data.formats.csv import read_csv

        return read_csv(paths, options)
    from edge_agent.data.formats.sqlite import read_sqlite

    if len(paths) > 1:
        raise DataError(f"{options.path}: one SQLite file at a time, {len(paths)} have such a name")
    return read_sqlite(replace(options, path=paths[0]))


def _check_tensors(config: DataConfig, spec: ModelSpec, path: Path) -> None:
    for what, given, known in (
        ("input", config.inputs, spec.inputs),
        ("target", config.target_sources, spec.targets),
    ):
        names = [tensor.name for tensor in known]
        for name in given:
            if name not in names:
                raise DataError(
                    f"{path}: the model {spec.name} has no {what} {name!r}; "
                    f"{what}s: {', '.join(names) or 'none'}"
                )
    for target in spec.targets:
        source = config.target_sources.get(target.name)
        if source and (source.scale, source.offset) != (1, 0) and target.dtype != "float32":
            what = f"scale {source.scale}" if source.scale != 1 else f"offset {source.offset}"
            raise DataError(f"{path}: {target.name} {what}: class targets cannot be scaled")


def build_dataset(
    table: Table,
    config: DataConfig,
    spec: ModelSpec,
    state_dir: Path | None = None,
    rows: Index | None = None,
    *,
    own: bool = False,
) -> LocalDataset:
    """The dataset of some rows of a table.

    Args:
        table: read with the same configuration and spec.
        config: how to split and scale.
        spec: what the program expects.
        state_dir: where a scale measured on the device is kept; None keeps nothing.
        rows: numbers of the rows to take, in the order of time unless the table has times; None
            takes all.
        own: whether the table's numbers may be overwritten, to save memory.

    Raises:
        EmptyDataError: no usable row.
        DataError: NaN with `nan: refuse`, a class that does not exist, a number that does not fit.
    """
    taken = all_rows(table.rows) if rows is None else np.asarray(rows, np.int64)
    known = known_scales(config, spec, state_dir) or {}
    usable = in_time(table, usable_rows(table, config, spec, taken, known))
    if not len(usable):
        dropped = f" ({len(taken)} dropped for NaN)" if len(taken) else ""
        raise EmptyDataError(f"{table.path}: no rows{dropped}")
    for tensor in tensors(config, spec):
        _check_whole(table, spec, tensor, usable)
    if "weight" in table.arrays:
        _check_weight(table, usable)
    order, num_train = _split(table, config, spec, taken, usable)
    by_column = scales(config, spec, table, order[:num_train], state_dir)
    absent = {t.name: _absent(table, t, order) for t in spec.inputs if t.missing is not None}
    arrays = {
        t.name: _finished(
            table,
            t,
            order,
            None if table.ready else conversion(config, spec, t, by_column.get(t.name)),
            own,
        )
        for t in tensors(config, spec)
    }
    indexes = _frozen(all_rows(len(order)))
    return LocalDataset(
        arrays,
        indexes[:num_train],
        indexes[num_train:],
        _frozen(order),
        by_column,
        absent,
        table.columns,
        table.places,
        config.split,
    )


def _split(
    table: Table, config: DataConfig, spec: ModelSpec, taken: Index, usable: Index
) -> tuple[Index, int]:
    """Returns the usable rows, those to learn from first, and how many these are."""
    if table.group is None and config.split == "time":  # the usual case takes no memory
        held_out = num_held_out(np.array([len(usable)]), config.test_fraction)
        return usable, len(usable) - int(held_out[0])
    group = table.group[usable] if table.group is not None else np.zeros(len(usable), np.int64)
    classes = _classes_to_stratify(table, config, spec, usable)
    # Numbers among this device's rows: the same from its own file and from that of a whole fleet.
    sorter = np.argsort(taken)
    numbers = sorter[np.searchsorted(taken, usable, sorter=sorter)]
    train, test = split_rows(config.split, group, numbers, config.test_fraction, classes)
    return usable[np.concatenate((train, test))], len(train)


def _classes_to_stratify(
    table: Table, config: DataConfig, spec: ModelSpec, rows: Index
) -> Array | None:
    """Returns the class of each row for a stratified split, None for others.

    Raises:
        DataError: the model has no class for each row.
    """
    if config.split != "stratified":
        return None
    classes = row_classes(table.arrays, spec, rows)
    if classes is None:
        raise DataError(
            f"{table.path}: split: stratified needs a target that is one class a row; "
            f"{spec.name} has none: take split: random, or name a column in group"
        )
    return classes


def _check_whole(table: Table, spec: ModelSpec, tensor: TensorSpec, rows: Index) -> None:
    """Refuses numbers that an int32 tensor cannot hold, and classes that do not exist."""
    if tensor.dtype != "int32":
        return
    for part, block in chunks(table.arrays[tensor.name], rows):
        wrong = first_wrong(block, spec.class_count(tensor), tensor.classes)
        if wrong is not None:
            row, place, why = wrong
            column = table.columns[tensor.name][place]
            raise DataError(f"{table.place(rows[part][row])}, column {column!r}: {why}")


def _finished(
    table: Table,
    tensor: TensorSpec,
    order: Index,
    scale: Callable[[Array], Array] | None,
    own: bool,
) -> Array:
    """The rows in `order`, scaled, in the tensor's dtype, read-only."""
    raw = table.arrays[tensor.name]
    in_place = own and raw.itemsize == 4 and raw.flags.writeable and _is_ascending(order)
    out: Array
    if in_place:  # rows move to the front only: none is overwritten before it is read
        out = raw.view(tensor.dtype)[: len(order)]
    else:
        out = np.empty((len(order), *tensor.shape), tensor.dtype)
    for part, block in chunks(raw, order):
        numbers = block if scale is None else scale(block)
        if tensor.missing is not None:
            numbers[np.isnan(numbers)] = tensor.missing
        out[part] = numbers
        if scale is not None and not np.isfinite(out[part]).all():
            raise DataError(f"{table.path}: {tensor.name} is not finite after it was scaled")
    return _frozen(out)


def _is_ascending(order: Index) -> bool:
    return bool((order[1:] > order[:-1]).all())


def _absent(table: Table, tensor: TensorSpec, order: Index) -> Array:
    """See `LocalDataset.absent`."""
    bits = np.empty((len(order), -(-prod(tensor.shape) // 8)), np.uint8)
    for part, block in chunks(table.arrays[tensor.name], order):
        bits[part] = np.packbits(np.isnan(block).reshape(len(block), -1), axis=1)
    return _frozen(bits)


def _check_weight(table: Table, rows: Index) -> None:
    weight = table.arrays["weight"][rows]
    if (weight < 0).any():
        row = int(np.argmax(weight < 0))
        raise DataError(f"{table.place(rows[row])}: weight {weight[row]} is below 0")
    if not weight.any():
        raise DataError(f"{table.path}: every row has weight 0: there is nothing to learn from")


def _frozen(array: np.ndarray[Any, np.dtype[Any]]) -> Array:
    array.flags.writeable = False
    return array
