"""θ: all weights of a model as one flat float32 vector, and the `Layout` that names its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import isfinite, prod
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedge.errors import ModelError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def is_finite(vector: F32) -> bool:
    """Returns whether no number of a vector, shape (n,), is NaN or infinite."""
    # The sum of the squares tells, in one pass and without a temporary array; it may overflow.
    return isfinite(np.dot(vector, vector)) or bool(np.isfinite(vector).all())


#: More parameters than this are refused before anything is allocated (4 GB of θ).
MAX_PARAMETERS = 1_000_000_000


class ParameterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One named tensor inside θ.

    Attributes:
        name: of the layer and its variable.
        shape: of the tensor.
        tracked: a statistic that follows the data, such as BatchNormalization's moving averages:
            averaged over agents and never stepped along a gradient. A program returns its change
            (before - after) where others have their gradient.
    """

    name: str
    shape: tuple[int, ...]
    tracked: bool = False

    @property
    def size(self) -> int:
        """Number of elements (1 for a scalar)."""
        return prod(self.shape)


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Layout of θ: named tensors in order, without gaps (row-major)."""

    parameters: tuple[ParameterSpec, ...]

    def __post_init__(self) -> None:
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) != len(names):
            raise ValueError(f"layout names a tensor twice: {sorted(names)}")
        for parameter in self.parameters:
            if any(side < 1 for side in parameter.shape):
                raise ValueError(
                    f"layout tensor {parameter.name!r} has shape {parameter.shape}: "
                    "every side must be at least 1"
                )
        if not 1 <= self.size <= MAX_PARAMETERS:
            raise ValueError(f"layout holds {self.size} parameters, limit 1 to {MAX_PARAMETERS}")

    @cached_property
    def size(self) -> int:
        """P, the length of θ."""
        return sum(parameter.size for parameter in self.parameters)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that differ when a name, a shape, what is tracked or the order differs.

        SHA-256 of the parameters' JSON, cut.
        """
        text = msgspec.json.encode(self.parameters)
        return hashlib.sha256(text).hexdigest()[:16]

    def slices(self) -> Iterator[tuple[ParameterSpec, slice]]:
        """Every tensor with the part of θ it occupies."""
        start = 0
        for parameter in self.parameters:
            yield parameter, slice(start, start + parameter.size)
            start += parameter.size

    @cached_property
    def tracked(self) -> tuple[slice, ...]:
        """The parts of θ that are averaged and never stepped."""
        return tuple(place for parameter, place in self.slices() if parameter.tracked)

    def flatten(self, tensors: Sequence[NDArray[Any]]) -> F32:
        """θ from one array per tensor, in layout order.

        Raises:
            ModelError: the number of arrays or a shape differs from the layout.
        """
        if len(tensors) != len(self.parameters):
            raise ModelError(f"{len(tensors)} tensors for a layout of {len(self.parameters)}")
        theta = np.empty(self.size, np.float32)
        for tensor, (parameter, place) in zip(tensors, self.slices(), strict=True):
            if tuple(tensor.shape) != parameter.shape:
                raise ModelError(
                    f"tensor {parameter.name!r} has shape {tuple(tensor.shape)}, "
                    f"the layout says {parameter.shape}"
                )
            theta[place] = np.ravel(tensor)
        return theta

    def unflatten(self, theta: F32) -> Mapping[str, F32]:
        """Views into θ by tensor name (no copy).

        Raises:
            ModelError: θ is not a float32 vector of length P.
        """
        self.check(theta)
        return {
            parameter.name: theta[place].reshape(parameter.shape)
            for parameter, place in self.slices()
        }

    def check(self, theta: F32) -> None:
        """Raises ModelError unless `theta` is float32 of shape (P,)."""
        if theta.dtype != np.float32 or theta.shape != (self.size,):
            raise ModelError(
                f"θ is {theta.dtype} of shape {theta.shape}, expected float32 of ({self.size},)"
            )
