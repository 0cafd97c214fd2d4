"""The personal part of a model: layers that each device learns for itself and never sends.

As in FedPer (Arivazhagan et al. 2019, arXiv 1912.00818, Algorithm 1): base layers are averaged,
personal ones start from the package's and stay where they were trained.
"""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.training.result import TrainingResult
from fedge.errors import ConfigError, DataError, ModelError
from fedge.files import write_whole
from learning.vector.parameters import F32
from models.package.package import read_vector
from models.package.spec import ModelSpec

log = logging.getLogger(__name__)


_NAME = "personal-{}.npy"


def personal_file(folder: Path, spec: ModelSpec) -> Path:
    """Where the device's own part of a model of this layout is kept."""
    layouts = [spec.layout] if spec.personal is None else [spec.layout, spec.personal]
    fingerprints = [layout.fingerprint for layout in layouts]
    return folder / _NAME.format("-".join(fingerprints))


def forget_others(path: Path) -> None:
    """Delete what was learned for other layouts beside `path`."""
    for other in path.parent.glob(_NAME.format("*")):
        if other == path:
            continue
        try:
            other.unlink(missing_ok=True)
            log.info("%s was of another model and is deleted", other)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", other, error.strerror)


class PersonalPart:
    """One device's own part of one model.

    Args:
        initial: float32, shape (Q,), from the package; Q is 0 for most models.
        path: where it is kept between starts; None keeps it in memory only. See `personal_file`:
            another package of the same layout goes on with it, another model starts anew.

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
        moved = self.vector + result.delta[size:]
        if self._path is not None:
            _store(self._path, moved)
        self.vector = moved
        return replace(result, delta=result.delta[:size])


def _load(path: Path, initial: F32) -> F32:
    if not path.exists():
        return initial
    try:
        vector = read_vector(path)
    except ModelError as error:
        raise DataError(f"{error}; delete the file to learn it anew") from error
    if vector.shape != initial.shape:
        raise DataError(
            f"{path}: {vector.size} numbers, expected {initial.size}; delete the file to learn it "
            "anew"
        )
    return vector


def _store(path: Path, vector: F32) -> None:
    """Whole or not at all, and for nobody else: it was learned from this device's data."""
    file = io.BytesIO()
    np.save(file, vector, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.getvalue())
    except (OSError, ConfigError) as error:
        raise DataError(f"{path}: the personal layers cannot be kept: {error}") from error
