"""Scales: the mean and standard deviation by which raw features become a model's inputs.

A scale measured on the device is stored at first use and kept: were it measured again as data
arrives, the same reading would mean different things to the model from one day to the next.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.table import Array, Index, Table, chunks
from fedge.errors import ConfigError, DataError
from fedge.files import write_whole
from learning.vector.parameters import F64
from models.package.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

STATE_FILE = "normalisation.json"
_MAX_STATE_BYTES = 16 << 20


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scale of an input: one mean and one std per feature of the last axis, or one for all.

    Attributes:
        mean: in the unit of the raw data.
        std: in the unit of the raw data, positive.
        source: names of the columns or of the array that was measured; empty if from the spec.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds")
        if not all(map(isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("means must be finite, stds positive")

    def apply(self, block: Array) -> F64:
        """Returns (block - mean) / std, in float64: small changes of large readings are kept."""
        scaled: F64 = (block - np.array(self.mean)) / np.array(self.std)
        return scaled


def conversion(
    config: DataConfig, spec: ModelSpec, tensor: TensorSpec, scale: Scale | None
) -> Callable[[Array], Array] | None:
    """Returns what turns a column's numbers into those of the program; None: nothing does.

    Args:
        config: a target's `scale` and `offset` turn the unit of the file into that of the spec.
        spec: of the model.
        tensor: of the spec.
        scale: of the column.
    """
    source = config.target_sources.get(tensor.name) if tensor in spec.targets else None
    if source is None or (source.scale, source.offset) == (1, 0):
        return scale.apply if scale else None

    def convert(block: Array) -> Array:
        converted = block * np.float64(source.scale) + source.offset
        return scale.apply(converted) if scale else converted

    return convert


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `STATE_FILE`."""

    scales: dict[str, Scale]
    format: Literal[1] = 1


def known_scales(
    config: DataConfig, spec: ModelSpec, state_dir: Path | None
) -> dict[str, Scale] | None:
    """Returns the scale of each column that is to be scaled, before any data is read.

    Args:
        config: `normalise` decides about inputs; a target means the same on every device.
        spec: of the model.
        state_dir: where a measured scale is kept.

    Returns:
        None when scales are yet to be measured, or those stored do not fit.

    Raises:
        DataError: the stored scales are unreadable.
    """
    found = {t.name: Scale(t.mean, t.std) for t in spec.targets if t.mean}
    if config.normalise == "none":
        return found
    if config.normalise == "spec":
        return found | {t.name: Scale(t.mean, t.std) for t in spec.inputs if t.mean}
    stored = _load(state_dir / STATE_FILE) if state_dir is not None else None
    if stored is None:
        return None
    for tensor in _scaled_on_device(spec):
        scale = stored.get(tensor.name)
        if scale is None or len(scale.mean) != (tensor.shape or (1,))[-1]:
            return None
    return found | stored


def _scaled_on_device(spec: ModelSpec) -> list[TensorSpec]:
    return [tensor for tensor in spec.inputs if tensor.dtype == "float32"]


def scales(
    config: DataConfig, spec: ModelSpec, table: Table, train: Index, state_dir: Path | None
) -> dict[str, Scale]:
    """Returns the scale of each column that is to be scaled.

    Args:
        config: `normalise` decides.
        spec: inputs of dtype int32 are never scaled.
        table: the raw data.
        train: rows of the table that may be measured.
        state_dir: where a measured scale is kept; None measures each time.

    Raises:
        DataError: nothing to measure, or the stored scale is unreadable or of other data.
    """
    if config.normalise != "device":
        return known_scales(config, spec, state_dir) or {}
    wanted = _scaled_on_device(spec)
    targets = {t.name: Scale(t.mean, t.std) for t in spec.targets if t.mean}
    path = state_dir / STATE_FILE if state_dir is not None else None
    if path is not None and (stored := _load(path)) is not None:
        _check_stored(path, stored, wanted, table)
        return stored | targets
    measured = {tensor.name: _measure(table, tensor, train) for tensor in wanted}
    if path is not None:
        _store(path, measured)
    return measured | targets


def _measure(table: Table, tensor: TensorSpec, train: Index) -> Scale:
    """Returns mean and std per feature of the last axis over training rows; 1 where std is 0."""
    if not len(train):
        raise DataError(
            f"{table.path}: normalise: device needs training rows to measure, there are none"
        )
    raw = table.arrays[tensor.name]
    features = (tensor.shape or (1,))[-1]
    # Two passes: the textbook sum of squares loses every digit when the mean is large.
    total, count = np.zeros(features), np.zeros(features)
    for _, block in chunks(raw, train):
        flat = block.reshape(-1, features)
        total += np.nansum(flat, 0, dtype=np.float64)  # NaN is a missing value, or was refused
        count += (flat == flat).sum(0)
    count = np.maximum(count, 1)
    mean = total / count
    squares = np.zeros(features)
    for _, block in chunks(raw, train):
        squares += np.nansum(np.square(block.reshape(-1, features) - mean), 0)
    std = np.sqrt(squares / count)
    # A feature that never changes carries nothing; its rounding noise must not become a signal.
    std[std <= 1e-12 * np.abs(mean)] = 1.0
    return Scale(tuple(mean.tolist()), tuple(std.tolist()), tuple(table.sources[tensor.name]))


def _load(path: Path) -> dict[str, Scale] | None:
    try:
        with path.open("rb") as file:
            # As much as there is: `read(limit)` takes the limit's memory first.
            data = file.read(min(_MAX_STATE_BYTES, os.fstat(file.fileno()).st_size))
        return msgspec.json.decode(data, type=_State).scales
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: {error}; delete the file to measure the scale again") from error


def _check_stored(
    path: Path, stored: Mapping[str, Scale], wanted: list[TensorSpec], table: Table
) -> None:
    for tensor in wanted:
        scale = stored.get(tensor.name)
        fits = scale is not None and len(scale.mean) == (tensor.shape or (1,))[-1]
        if scale is None or not fits or scale.source != tuple(table.sources[tensor.name]):
            raise DataError(
                f"{path}: the stored scale is not of this data (input {tensor.name!r} has another "
                "source or shape); delete the file to measure the scale again"
            )


def _store(path: Path, measured: dict[str, Scale]) -> None:
    text = msgspec.json.format(msgspec.json.encode(_State(measured)), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except (OSError, ConfigError) as error:
        raise DataError(f"{path}: the scale cannot be kept: {error}") from error
    log.info("scale of the inputs measured and kept in %s", path, extra={"event": "scale_stored"})
