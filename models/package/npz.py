"""Reads .npz files (arrays stored by `np.savez` or `np.savez_compressed`), one array at a time.

Dtype and shape of an array come from its header before its data is read, so that a file that does
not fit costs no memory. Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import DataError

_NPY: Any = np.lib.format  # numpy leaves it without types
_SUFFIX = ".npy"
#: Exceptions for a damaged archive, depending on where the damage is.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError,
    NotImplementedError, SyntaxError, TokenError, TypeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class Npz:
    """An open .npz file.

    Attributes:
        path: path of the file, for messages.
        archive: the open archive.
    """

    path: Path
    archive: zipfile.ZipFile

    @cached_property
    def names(self) -> list[str]:
        """Names of the arrays."""
        members = self.archive.namelist()
        return [name.removesuffix(_SUFFIX) for name in members if name.endswith(_SUFFIX)]

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Returns shape and dtype of an array; its data is not read.

        Raises:
            DataError: the array is damaged, holds Python objects, or has no row axis.
        """
        try:
            with self.archive.open(name + _SUFFIX) as file:
                shape, dtype = _header(file)
        except _DAMAGE as error:
            raise self._damaged(name, error) from error
        if dtype.hasobject:
            raise DataError(f"{self.path}: array {name!r} holds Python objects, expected numbers")
        if not shape:
            raise DataError(f"{self.path}: array {name!r} is one number, expected one per row")
        return shape, dtype

    def read(self, name: str) -> NDArray[Any]:
        """Returns an array as it is stored.

        Raises:
            DataError: the array is damaged.
        """
        try:
            with self.archive.open(name + _SUFFIX) as file:
                shape, dtype = _header(file)
                # numpy allocates the memory that the header claims before it reads the data.
                size = self.archive.getinfo(name + _SUFFIX).file_size
                if prod(shape) * dtype.itemsize > size:
                    raise ValueError(f"{size} bytes for {dtype} of shape {shape}")
                file.seek(0)
                array: NDArray[Any] = _NPY.read_array(file, allow_pickle=False)
        except _DAMAGE as error:
            raise self._damaged(name, error) from error
        return array

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(f"{self.path}: array {name!r} cannot be read: {error}")


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Opens a .npz file until the block ends.

    Raises:
        DataError: the file cannot be read, or is not an .npz file.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise DataError(
                f"{path}: not an .npz file (save the arrays with numpy.savez): {error}"
            ) from error
        with archive:
            yield Npz(path, archive)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = _NPY.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = _NPY.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = _NPY.read_array_header_2_0(file)
    else:
        raise ValueError(f"unsupported .npy version {version}")
    return shape, dtype
