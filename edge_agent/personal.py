"""The personal part of a model: layers that each device learns for itself and never sends.

As in FedPer (Arivazhagan et al. 2019, arXiv 1912.00818, Algorithm 1): base layers are averaged,
personal ones start from the package's and stay where they were trained.
"""

from __future__ import annotations

import io
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.trainer import TrainingResult
from models.errors import DataError
from models.parameters import F32

log = logging.getLogger(__name__)


class PersonalPart:
    """One device's own part of one model.

    Args:
        initial: float32, shape (Q,), from the package; Q is 0 for most models.
        path: where it is kept between starts; None keeps it in memory only. The file's name should
            hold the package's digest: another model starts anew.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, initial: F32, path: Path | None = None) -> None:
        self._path = path if initial.size else None
        self.vector = initial if self._path is None else _load(self._path, initial)

    def whole(self, theta: F32) -> F32:
        """θ and the personal part: the vector that the program takes."""
        return np.concatenate([theta, self.vector]) if self.vector.size else theta

    def keep(self, result: TrainingResult) -> TrainingResult:
        """Keeps what training did to the personal part; the result is left with θ's delta.

        Raises:
            DataError: the disk is full.
        """
        if not self.vector.size:
            return result
        size = len(result.delta) - self.vector.size
        self.vector = self.vector + result.delta[size:]
        if self._path is not None:
            _store(self._path, self.vector)
        return replace(result, delta=result.delta[:size])


def _load(path: Path, initial: F32) -> F32:
    try:
        vector = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except FileNotFoundError:
        return initial
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}; delete the file to learn it anew") from error
    if vector.dtype != np.float32 or vector.shape != initial.shape or not np.isfinite(vector).all():
        raise DataError(
            f"{path}: {vector.dtype} of shape {vector.shape}, expected {initial.size} finite "
            "float32 numbers; delete the file to learn it anew"
        )
    found: F32 = vector
    return found


def _store(path: Path, vector: F32) -> None:
    """Writes beside, flushes, renames: a power cut leaves the whole file or the one before."""
    beside = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            np.save(file, vector, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
