"""Label shift: labels that are off by a constant from what a model predicts."""

from __future__ import annotations

import numpy as np

from learning.vector.parameters import F64

#: Fewer rows show nothing.
_FEW = 10.0
#: Share of the rows that are off by the same number.
_MOST = 0.6
#: Largest share of rows that are right where labels are shifted.
RIGHT = 0.2
#: Share that a second class must have: a model that always says one class is no shift.
_SECOND = 0.1


def label_shift(confusion: F64) -> int:
    """Returns label minus predicted class where most rows have the same difference; 0: no shift.

    Args:
        confusion: weight of rows by label and predicted class, shape (classes, classes).
    """
    total, classes = float(confusion.sum()), len(confusion)
    if total < _FEW or np.trace(confusion) > RIGHT * total:
        return 0
    for shift in (k for size in range(1, classes - 1) for k in (size, -size)):
        off = np.diagonal(confusion, -shift)
        if off.sum() >= _MOST * total and np.sort(off)[-2] >= _SECOND * total:
            return shift
    return 0
