"""Judges an int8 release: row by row, on rows that did not calibrate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learning.vector.parameters import F64
from models.runtime.rows import Array

#: Of the differences' median and largest, in spreads of the float model's predictions. Sound int8
#: releases of the zoo reach 0.19 and 0.25; a constant prediction has a median near 1.
MAX_MEDIAN = 0.25
MAX_WORST = 2.0
#: Rows with the most unusual predictions that are left out of the spread: an absurd row would make
#: all differences small.
_TRIMMED = 0.05


@dataclass(frozen=True)
class Difference:
    """Difference between the predictions of a release and the float model's, on some rows.

    Attributes:
        median: of the rows.
        worst: of the rows.
        row: number of the worst one.
    """

    median: float
    worst: float
    row: int


def row_differences(expected: Mapping[str, Array], found: Mapping[str, Array]) -> Difference | None:
    """Returns the differences per row in spreads of the predictions, of the worst output.

    None: the float model predicts the same for all rows, which cannot tell.
    """
    differences = [_of_output(values, found[name]) for name, values in expected.items()]
    known = [difference for difference in differences if difference is not None]
    return max(known, key=lambda difference: difference.median, default=None)


def difference_faults(
    difference: Difference | None, source: str, numbers: Sequence[int]
) -> list[str]:
    """Returns what is wrong with a release by its differences; empty if nothing.

    Args:
        difference: of the rows that judge it.
        source: what these rows are, in words.
        numbers: their row numbers there.
    """
    if difference is None:
        return [f"the float model predicts the same for all {source}, which cannot tell"]
    faults = []
    if not difference.median <= MAX_MEDIAN:
        faults.append(
            f"half of the {source} differ from the float model by {difference.median:.2f} and more "
            f"of its predictions' spread (limit {MAX_MEDIAN})"
        )
    if not difference.worst <= MAX_WORST:
        row = numbers[difference.row]
        faults.append(
            f"row {row} of the {source} differs by {difference.worst:.2f} spreads "
            f"(limit {MAX_WORST})"
        )
    return faults


def _of_output(expected: Array, found: Array) -> Difference | None:
    wanted, got = (a.reshape(len(a), -1).astype(np.float64) for a in (expected, found))
    spread = _spread(wanted)
    if not spread > 0:
        return None
    far = np.linalg.norm(got - wanted, axis=1) / spread
    row = int(far.argmax())
    return Difference(float(np.median(far)), float(far[row]), row)


def _spread(values: F64) -> float:
    """Returns the root mean square distance from the median, without the farthest rows."""
    far = np.sort(np.linalg.norm(values - np.median(values, axis=0), axis=1))
    kept = far[: len(far) - max(1, int(_TRIMMED * len(far)))]
    return float(np.sqrt(np.mean(np.square(kept)))) if kept.size else 0.0
