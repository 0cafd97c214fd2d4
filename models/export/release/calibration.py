"""Rows of an int8 release: those that give the ranges, those that judge it, and faults of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.package.spec import ModelSpec
from models.runtime.rows import Array, Rows, row_count

#: Different rows below which ranges are guesses.
MIN_ROWS = 10
#: One row of so many is held apart.
_APART = 5
#: A number so many times the 99th percentile takes the 256 levels from all others.
_MAX_RANGE = 1000
_RANDOM = "random rows"


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of an int8 release.

    Attributes:
        calibrating: rows that give the ranges.
        judging: rows on which the release is compared with the float model; none of them
            calibrates.
        source: what the judging rows are, in words.
        numbers: their row numbers where they come from, from 0.
        faults: what is wrong with the calibration; empty if nothing.
    """

    calibrating: Rows
    judging: Rows
    source: str
    numbers: Sequence[int]
    faults: tuple[str, ...]

    def measured(self, spec: ModelSpec) -> Rows | None:
        """Returns the judging rows if metrics say something of them: real ones, with targets."""
        has_targets = all(target.name in self.judging for target in spec.targets)
        return self.judging if self.source != _RANDOM and has_targets else None


def split_rows(
    spec: ModelSpec, calibration: Rows, data: Rows | None, random_rows: Callable[[], Rows]
) -> Split:
    """Returns which rows calibrate and which judge.

    Rows of `data` judge, without those that calibrate. Without any of its own, every fifth row of
    the calibration is held apart to judge; random rows do where the calibration has too few.

    Args:
        spec: of the model.
        calibration: representative rows, scaled.
        data: rows to measure on, scaled; None if none were given.
        random_rows: makes rows that fit the model.
    """
    keys = _keys(spec, calibration)
    different = len(set(keys))
    faults = []
    if different < MIN_ROWS:
        faults.append(
            f"the calibration has {different} different row{'s' * (different > 1)} of {len(keys)}, "
            f"{MIN_ROWS} at least, some hundred are better"
        )
    known = set(keys)
    given = [] if data is None else [i for i, k in enumerate(_keys(spec, data)) if k not in known]
    used = list(range(len(keys)))
    if data is not None and len(given) > 1:
        judging, source, numbers = (
            _taken(data, given),
            "rows of --data that do not calibrate",
            given,
        )
    elif different >= MIN_ROWS:
        apart = set(list(dict.fromkeys(keys))[_APART - 1 :: _APART])
        used = [i for i, k in enumerate(keys) if k not in apart]
        numbers = [i for i, k in enumerate(keys) if k in apart]
        judging, source = _taken(calibration, numbers), "rows of --calibration held apart"
    else:
        judging, source = dict(random_rows()), _RANDOM
        numbers = list(range(row_count(judging)))
    calibrating = _taken(calibration, used)
    faults += _ranges(spec, calibrating, used)
    return Split(calibrating, judging, source, numbers, tuple(faults))


def _keys(spec: ModelSpec, rows: Rows) -> list[bytes]:
    """Returns the bytes of each row's inputs."""
    arrays = [np.ascontiguousarray(rows[t.name], t.dtype) for t in spec.inputs]
    return [b"".join(a[i].tobytes() for a in arrays) for i in range(row_count(rows))]


def _taken(rows: Rows, index: list[int]) -> dict[str, Array]:
    return {name: array[index] for name, array in rows.items()}


def _ranges(spec: ModelSpec, rows: Rows, numbers: Sequence[int]) -> Iterator[str]:
    """Returns a fault for each input of which few numbers are far larger than all others.

    Args:
        spec: of the model.
        rows: that calibrate.
        numbers: their row numbers in the calibration.
    """
    for tensor in spec.inputs:
        sizes = np.abs(rows[tensor.name].astype(np.float64))
        others = sizes[sizes > 0]
        if tensor.dtype != "float32" or not others.size:
            continue
        usual = float(np.percentile(others, 99, method="lower"))
        if (largest := float(sizes.max())) > _MAX_RANGE * usual:
            row = int(np.unravel_index(int(sizes.argmax()), sizes.shape)[0])
            yield (
                f"input {tensor.name!r} of the calibration reaches {largest:.3g} after scaling "
                f"(row {numbers[row]}), {largest / usual:,.0f} times its 99th percentile "
                f"{usual:.3g} (limit {_MAX_RANGE:,}): remove such rows"
            )
