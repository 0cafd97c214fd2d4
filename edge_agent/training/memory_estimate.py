"""Memory estimate: whether a program fits, before it is loaded and the device swaps or is killed.

Foretold is 1.1 to 1.9 times of what training takes (benchmarks/limits.py, every model of the zoo).
An interpreter lets tensors share memory, and how much is known only once it has planned it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from fedge.errors import ModelError
from models.inspect.flatbuffer import tensor_bytes
from models.package.spec import ModelSpec

#: The interpreter.
_RUNTIME_BYTES = 10 << 20
#: θ as fetched, as trained, its gradient, the optimizer's two, delta, residual, the frame. (An
#: algorithm with control variates takes five more, which no program can say before the plan comes.)
_VECTORS = 8
#: Frozen numbers: stored, and decoded.
_FROZEN = 2
#: The program's file, and for each signature the interpreter's tables of its nodes and tensors.
_PROGRAMS = 16


@dataclass(frozen=True)
class Need:
    """Bytes that loading and training a program add to the process."""

    model_bytes: int
    data_bytes: int

    @property
    def total(self) -> int:
        """Bytes of model and data."""
        return self.model_bytes + self.data_bytes

    def __str__(self) -> str:
        model, data = megabytes(self.model_bytes), megabytes(self.data_bytes)
        return f"about {megabytes(self.total)} (model {model}, data {data})"


def estimate(spec: ModelSpec, program: bytes, data_bytes: int) -> Need:
    """Returns what training this model on so much data takes; loads nothing.

    Args:
        spec: of the model.
        program: of the model.
        data_bytes: see `edge_agent.data.size`.
    """
    numbers = _VECTORS * spec.whole_size + _FROZEN * spec.frozen
    model = _RUNTIME_BYTES + 4 * numbers + _PROGRAMS * len(program)
    with contextlib.suppress(ModelError):  # damaged: the interpreter will say so
        model += tensor_bytes(program)
    return Need(model, data_bytes)


def shortage(
    need: Need, *, resident: int | None, available: int | None, ceiling: int | None
) -> str:
    """Returns why it does not fit, in words; empty when it does, or when that is not known.

    Args:
        need: of the program and the data.
        resident: bytes that this process holds already.
        available: bytes that the system can still give.
        ceiling: bytes that this process may hold.
    """
    if ceiling is not None and resident is not None and resident + need.total > ceiling:
        return (
            f"{need} above the {megabytes(resident)} in use is more than max_memory_bytes "
            f"({megabytes(ceiling)})"
        )
    if available is not None and need.total > available:
        return f"{need} is needed, {megabytes(available)} is available"
    return ""


def megabytes(count: int) -> str:
    """Returns a number of bytes in words."""
    return f"{count / 1e6:,.0f} MB"
