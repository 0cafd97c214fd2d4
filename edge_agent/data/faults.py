"""Faults: numbers that no sensor means, found where they are read.

One reading of 1e30 makes the loss of its batch infinite: the learning rate would be blamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from edge_agent.data.normalise import Scale
from edge_agent.data.table import Array
from learning.vector.parameters import F64

#: The square of a larger number, as a loss takes it, is beyond float32.
LARGEST = 1e18
#: Of an input that is scaled, in standard deviations: no reading is so far off the model's data.
LARGEST_SCALED = 1e6
#: As a program takes it: what diverges with such a number does not do so for its learning rate.
FAR_OFF = 1e3
_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Range:
    """Range of the numbers that a tensor may have, in the units of the file.

    Attributes:
        low: float64, one number or one for each number of a row.
        high: likewise.
        mean: likewise, of an input that is scaled.
        std: likewise.
    """

    low: F64
    high: F64
    mean: F64 | None = None
    std: F64 | None = None

    @classmethod
    def of(cls, numbers: int, scale: Scale | None, factor: float = 1.0) -> Range:
        """Returns the range of a tensor's numbers.

        Args:
            numbers: in a row of the file.
            scale: of an input; None: it is not scaled.
            factor: that a target is multiplied by.
        """
        limit = LARGEST / max(1.0, abs(factor))
        if scale is None:
            return cls(np.array(-limit), np.array(limit))
        mean, std = np.array(scale.mean), np.array(scale.std)
        if len(mean) > 1:
            mean, std = np.resize(mean, numbers), np.resize(std, numbers)
        return cls(
            np.maximum(mean - LARGEST_SCALED * std, -limit),
            np.minimum(mean + LARGEST_SCALED * std, limit),
            mean,
            std,
        )

    def outside(self, numbers: Array) -> Any:
        """Returns which numbers are outside, NaN among them; shape (rows, numbers in a row)."""
        return ~((numbers >= self.low) & (numbers <= self.high))

    def why(self, value: float, column: int) -> str:
        """Returns in words what is wrong with a number outside."""
        if not isfinite(value):
            return f"{value:g} is no finite number"
        if abs(value) > _FLOAT32:
            return f"{value:g} is more than float32 holds, 3.4e+38"
        if self.mean is None or self.std is None:
            return f"{value:g} is no reading: its size is above {float(self.high):g}"
        mean, std = (float(part.reshape(-1)[column % part.size]) for part in (self.mean, self.std))
        return (
            f"{value:g} is no reading: it is {(value - mean) / std:+.1g} standard deviations from "
            f"the mean, limit {LARGEST_SCALED:g} (a fault of the sensor, or another unit)"
        )


@dataclass(frozen=True)
class Largest:
    """The number of the largest size among some rows.

    Attributes:
        tensor: that has it.
        row: in which it is.
        column: its place in the row.
        value: as a program takes it.
    """

    tensor: str
    row: int
    column: int
    value: float


def largest_number(rows: Mapping[str, Array]) -> Largest | None:
    """Returns the float of the largest size; None: there is none.

    Args:
        rows: as a program takes them, shape (n, *shape) each.
    """
    best: Largest | None = None
    for name, array in rows.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        flat = array.reshape(len(array), -1)
        low, high = int(flat.argmin()), int(flat.argmax())
        values = flat.reshape(-1)
        place = low if -values[low] > values[high] else high
        row, column = divmod(place, flat.shape[1])
        if best is None or abs(values[place]) > abs(best.value):
            best = Largest(name, row, column, float(values[place]))
    return best
