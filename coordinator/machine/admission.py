"""Admission: checks of one decoded update before it counts.

Pure functions. Each raises `UpdateRejected` with the reason that goes into the receipt; the caller
counts it and goes on with the next message.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from fedge.errors import UpdateRejected
from learning.aggregation.norm_bound import vector_norm
from learning.vector.parameters import F32

#: More examples on one small device are a mistake or an attempt to outweigh the others.
MAX_EXAMPLES = 1_000_000_000
#: Of the sum of row weights: a sum that is divided by less would leave a float's range.
MIN_WEIGHT = 1e-6


def check_vector(agent_id: str, delta: F32, *, size: int) -> float:
    """Returns a delta's L2 norm; refuses one that does not fit the model or would wreck the mean.

    Args:
        agent_id: whose delta, for the error.
        delta: as decoded.
        size: P.

    Raises:
        UpdateRejected: `shape` or `not_finite`.
    """
    if delta.dtype != np.float32 or delta.shape != (size,):
        found = f"{delta.dtype} of {delta.shape}, expected float32 of ({size},)"
        raise UpdateRejected(agent_id, "shape", found)
    norm = vector_norm(delta)
    if not isfinite(norm):
        bad = size - int(np.count_nonzero(np.isfinite(delta)))
        raise UpdateRejected(agent_id, "not_finite", f"NaN or inf in {bad} of {size} values")
    return norm


def check_examples(agent_id: str, num_examples: int) -> None:
    """Refuses a weight that is none.

    Raises:
        UpdateRejected: `examples`: below 1 or above a billion.
    """
    if not 1 <= num_examples <= MAX_EXAMPLES:
        detail = f"{num_examples} examples, range 1 to {MAX_EXAMPLES}"
        raise UpdateRejected(agent_id, "examples", detail)
