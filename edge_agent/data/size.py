"""Size of a device's data in memory, foretold from its files without reading them."""

from __future__ import annotations

import contextlib
import zipfile
from math import prod
from pathlib import Path

from edge_agent.data.config import DataConfig
from edge_agent.data.files import data_files
from edge_agent.data.normalise import known_scales
from edge_agent.data.table import tensors
from fedge.errors import DataError
from models.package.spec import ModelSpec

#: An array as it is stored, and as the program takes it.
_ARRAYS = 2
#: Of a text file: by their length lines are counted.
_SAMPLE_BYTES = 1 << 16
#: A block of lines with all that is made of it.
_BLOCK_BYTES = 4 << 20
#: Of a row: its number, its time, whether it is used.
_ROW_BYTES = 16


def data_bytes(config: DataConfig, spec: ModelSpec, base: Path, state_dir: Path | None) -> int:
    """Returns the bytes that reading takes at most; 0 where nothing can be said.

    Args:
        config: of the data.
        spec: of the model.
        base: folder that `config.path` is relative to.
        state_dir: where a measured scale is kept: without it numbers stay in float64 at first.
    """
    try:
        _, paths = data_files(config.path, base)
        is_ready = known_scales(config, spec, state_dir) is not None
    except DataError:
        return 0  # the reader will say what is wrong
    if config.format == "npz":
        return sum(map(_of_npz, paths))
    sizes = []
    for path in paths:
        with contextlib.suppress(OSError):
            sizes.append((path.stat().st_size, _line_bytes(path, config)))
    rows = sum(size // line for size, line in sizes)
    numbers = sum(prod(tensor.shape) for tensor in tensors(config, spec))
    per_row = numbers * (4 if is_ready else 12)
    if config.window is not None:
        return int(rows * per_row / config.window.step) + 4 * _BLOCK_BYTES if rows else 0
    if config.group is not None:
        per_row += 4 * numbers  # put in another order
    return rows * (per_row + _ROW_BYTES) + _BLOCK_BYTES if rows else 0


def _of_npz(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:  # it says how large it is when unpacked
            return _ARRAYS * sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return 0


def _line_bytes(path: Path, config: DataConfig) -> int:
    """Returns the mean length of a line; of a database some bytes for each value are certain."""
    if config.format == "sqlite":
        return 8
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    return max(1, len(sample) // max(1, sample.count(b"\n")))
