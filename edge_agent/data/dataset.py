"""LocalDataset: a device's own rows, ready for the program, and the way from file to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_agent.data.config import DataConfig, InputSource, TargetSource, WeightSource
from edge_agent.data.csv import read_csv
from edge_agent.data.normalise import Scale, scales
from edge_agent.data.npz import read_npz
from edge_agent.data.split import split_rows
from edge_agent.data.table import Array, EmptyDataError, Index, Table, chunks, tensors
from edge_agent.data.targets import row_classes
from fedge.errors import DataError
from fedge.yaml_config import located
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
    "read_table",
]

log = logging.getLogger(__name__)

Part = Literal["train", "test"]

_READERS = {"npz": read_npz, "csv": read_csv}


@dataclass(frozen=True, eq=False)
class LocalDataset:
    """Rows in the types and shapes of a spec, read-only.

    Rows are stored training part first, so that both parts are views and cost no memory.

    Attributes:
        arrays: per column (inputs, targets, perhaps `weight`), shape (n, *shape), in the spec's
            dtype, scaled.
        train: indexes of the training rows, int64, ascending.
        test: indexes of the held-out rows, int64, ascending.
        rows: for each row its number in the data file, int64, shape (n,).
        scales: what each scaled input or target was scaled by.
        absent: per input that may miss numbers the bits of those that are missing, uint8, shape
            (n, numbers a row / 8), as `np.packbits` makes them.
    """

    arrays: Mapping[str, Array]
    train: Index
    test: Index
    rows: Index
    scales: Mapping[str, Scale]
    absent: Mapping[str, Array] = field(default_factory=dict)

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
    table = read_table(config, spec, base)
    return build_dataset(table, config, spec, state_dir)


def read_table(config: DataConfig, spec: ModelSpec, base: Path) -> Table:
    """The data file as it is, for a fleet that deals the rows of one file out to many agents.

    Raises:
        DataError: the file is missing, or arrays or columns are.
    """
    path = located(config.path, base)
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
        scale, offset = _conversion(config, target)
        if (scale, offset) != (1, 0) and target.dtype != "float32":
            what = f"scale {scale}" if scale != 1 else f"offset {offset}"
            raise DataError(f"{path}: {target.name} {what}: class targets cannot be scaled")
    return _READERS[config.format](path, config, spec)


def build_dataset(
    table: Table,
    config: DataConfig,
    spec: ModelSpec,
    state_dir: Path | None = None,
    rows: Index | None = None,
) -> LocalDataset:
    """The dataset of some rows of a table.

    Args:
        table: from `read_table` with the same configuration and spec.
        config: how to split and scale.
        spec: what the program expects.
        state_dir: where a scale measured on the device is kept; None keeps nothing.
        rows: numbers of the rows to take, in the order of time; None takes all.

    Raises:
        EmptyDataError: no usable row.
        DataError: NaN with `nan: refuse`, a class that does not exist, a number that does not fit.
    """
    taken = np.arange(table.rows) if rows is None else np.asarray(rows, np.int64)
    usable = _usable(table, config, spec, taken)
    if not len(usable):
        dropped = f" ({len(taken)} dropped for NaN)" if len(taken) else ""
        raise EmptyDataError(f"{table.path}: no rows{dropped}")
    for tensor in tensors(config, spec):
        _check_whole(table, spec, tensor, usable)
    if "weight" in table.arrays:
        _check_weight(table, usable)
    group = table.group[usable] if table.group is not None else np.zeros(len(usable), np.int64)
    classes = _classes_to_stratify(table, config, spec, usable)
    # Numbers among this device's rows: the same from its own file and from that of a whole fleet.
    numbers = np.flatnonzero(np.isin(taken, usable, assume_unique=True))
    train, test = split_rows(config.split, group, numbers, config.test_fraction, classes)
    order = usable[np.concatenate((train, test))]
    by_column = scales(config, spec, table, usable[train], state_dir)
    # Whatever `normalise` says of inputs: a target must mean the same on every device.
    by_column |= {t.name: Scale(t.mean, t.std) for t in spec.targets if t.mean}
    arrays = {
        t.name: _finished(table, t, order, _scaling(config, spec, t, by_column.get(t.name)))
        for t in tensors(config, spec)
    }
    absent = {t.name: _absent(table, t, order) for t in spec.inputs if t.missing is not None}
    indexes = _frozen(np.arange(len(order)))
    return LocalDataset(
        arrays, indexes[: len(train)], indexes[len(train) :], _frozen(order), by_column, absent
    )


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


def _conversion(config: DataConfig, target: TensorSpec) -> tuple[float, float]:
    """Returns scale and offset that turn a target of the file into the unit of the spec."""
    source = config.target_sources.get(target.name)
    return (source.scale, source.offset) if source else (1.0, 0.0)


def _scaling(
    config: DataConfig, spec: ModelSpec, tensor: TensorSpec, scale: Scale | None
) -> Callable[[Array], Array] | None:
    """Returns the scaling of a column's numbers; None: no scaling."""
    factor, offset = _conversion(config, tensor) if tensor in spec.targets else (1.0, 0.0)
    if (factor, offset) == (1, 0):
        return scale.apply if scale else None

    def convert(block: Array) -> Array:
        converted = block * np.float64(factor) + offset
        return scale.apply(converted) if scale else converted

    return convert


def _usable(table: Table, config: DataConfig, spec: ModelSpec, rows: Index) -> Index:
    """The rows without NaN and infinity (also those that float32 would make infinite).

    NaN stays where the spec says what stands for a missing value.
    """
    good = np.ones(len(rows), bool)
    for tensor in tensors(config, spec):
        raw = table.arrays[tensor.name]
        if raw.dtype.kind != "f":
            continue
        for part, block in chunks(raw, rows):
            finite = _is_finite(block).reshape(len(block), -1)
            if tensor.missing is not None:
                finite |= np.isnan(block).reshape(len(block), -1)
            if config.nan == "refuse" and not finite.all():
                row, column = np.argwhere(~finite)[0]
                raise DataError(
                    f"{table.place(rows[part][row])}, "
                    f"column {table.columns[tensor.name][column]!r}: "
                    f"{_not_finite(block.reshape(len(block), -1)[row, column])}; "
                    "with `nan: drop` such rows are left out"
                )
            good[part] &= finite.all(1)
    dropped = len(rows) - int(good.sum())
    if dropped:
        log.warning(
            "%s: %d of %d rows dropped: NaN or infinity",
            table.path, dropped, len(rows), extra={"event": "rows_dropped", "rows": dropped},
        )  # fmt: skip
    usable: Index = rows[good]
    return usable


def _is_finite(block: Array) -> Array:
    with np.errstate(over="ignore"):
        finite: Array = np.isfinite(block.astype(np.float32, copy=False))
    return finite


def _not_finite(value: float) -> str:
    beyond = "more than float32 holds, 3.4e+38"
    return f"{value} is {beyond if np.isfinite(value) else 'no finite number'}"


def _check_whole(table: Table, spec: ModelSpec, tensor: TensorSpec, rows: Index) -> None:
    """Refuses numbers that an int32 tensor cannot hold, and classes that do not exist."""
    if tensor.dtype != "int32":
        return
    for part, block in chunks(table.arrays[tensor.name], rows):
        wrong = first_wrong(block, spec.class_count(tensor))
        if wrong is not None:
            row, place, why = wrong
            column = table.columns[tensor.name][place]
            raise DataError(f"{table.place(rows[part][row])}, column {column!r}: {why}")


def _finished(
    table: Table, tensor: TensorSpec, order: Index, scale: Callable[[Array], Array] | None
) -> Array:
    """The rows in `order`, scaled, in the tensor's dtype, read-only."""
    raw = table.arrays[tensor.name]
    out: Array = np.empty((len(order), *tensor.shape), tensor.dtype)
    for part, block in chunks(raw, order):
        out[part] = block if scale is None else scale(block)
        if tensor.missing is not None:
            out[part][np.isnan(out[part])] = tensor.missing
        if scale is not None and not np.isfinite(out[part]).all():
            raise DataError(f"{table.path}: {tensor.name} is not finite after it was scaled")
    return _frozen(out)


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
