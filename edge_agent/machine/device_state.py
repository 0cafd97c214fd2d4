"""Device state: all that an agent remembers of its earlier updates."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from learning.vector.parameters import F32
from learning.vector.vectors import Vectors
from models.package.spec import ModelSpec

log = logging.getLogger(__name__)

F16 = NDArray[np.float16]

_Sized = TypeVar("_Sized", F32, "Residual")

#: Residuals below it become zeros: what they would add is lost in any θ.
MIN_SCALE = 2.0**-100


@dataclass(frozen=True, eq=False)
class Residual:
    """Error-feedback residual at half the memory: a scale, and float16 parts of it.

    Attributes:
        scale: largest magnitude.
        halves: float16, [n], read-only: values divided by the scale.
    """

    scale: float
    halves: F16

    def __post_init__(self) -> None:
        self.halves.setflags(write=False)

    @property
    def size(self) -> int:
        """Number of values."""
        return self.halves.size

    @property
    def vector(self) -> F32:
        """The values, float32, [n]: a new array."""
        return self.halves.astype(np.float32) * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class DeviceState:
    """State after one update; counts once the update does. Arrays are read-only.

    Attributes:
        model: the layouts that it belongs to (`model_key`).
        session: the coordinator's state folder that it belongs to.
        residuals: error-feedback residual by uploaded vector; belongs to model and session.
        algorithm: name of the algorithm that `vectors` belong to.
        vectors: what the algorithm remembers on this device; belong to model, session and
            algorithm.
        personal: personal layers, float32, [Q]; belong to the model; None: still the package's.
    """

    model: str = ""
    session: str = ""
    residuals: Mapping[str, Residual] = field(default_factory=dict)
    algorithm: str = ""
    vectors: Vectors = field(default_factory=dict)
    personal: F32 | None = None

    def __post_init__(self) -> None:
        personal = () if self.personal is None else (self.personal,)
        for vector in (*self.vectors.values(), *personal):
            vector.setflags(write=False)

    def usable_for(self, model: str, session: str, algorithm: str) -> DeviceState:
        """Returns the part of the state that belongs to a model, a session and an algorithm."""
        if self.model != model:
            return DeviceState(model, session, algorithm=algorithm)
        if self.session != session:
            return DeviceState(model, session, algorithm=algorithm, personal=self.personal)
        if self.algorithm != algorithm:
            return replace(self, algorithm=algorithm, vectors={})
        return self

    def of_lengths(
        self, vectors: Mapping[str, int], residuals: Mapping[str, int], personal: int
    ) -> DeviceState:
        """Returns the state without what has another length than expected.

        Args:
            vectors: lengths by name; a vector of another name may have any.
            residuals: likewise.
            personal: length of the personal layers.
        """
        own = None if self.personal is None or self.personal.size != personal else self.personal
        return replace(
            self,
            vectors=_of_lengths(self.vectors, vectors),
            residuals=_of_lengths(self.residuals, residuals),
            personal=own,
        )


def _of_lengths(vectors: Mapping[str, _Sized], lengths: Mapping[str, int]) -> dict[str, _Sized]:
    kept = {
        n: vector for n, vector in vectors.items() if vector.size == lengths.get(n, vector.size)
    }
    for name in vectors.keys() - kept.keys():
        log.warning("stored %s is left out: %d numbers", name, vectors[name].size)
    return kept


def model_key(spec: ModelSpec) -> str:
    """Returns the fingerprints of a model's layouts: another package of them has the same state."""
    layouts = [spec.layout] if spec.personal is None else [spec.layout, spec.personal]
    return "-".join(layout.fingerprint for layout in layouts)


def rounded(residual: F32) -> Residual:
    """Returns a residual as it is stored, so that a restarted agent computes the same bits.

    Off by at most |x| / 2,048 + max|x| · 3e-8; a residual whose max|x| is below 2**-100 becomes
    zeros. Rounding the result again changes no bit.
    """
    scale = float(np.abs(residual).max(initial=0.0))
    if scale < MIN_SCALE:
        return Residual(0.0, np.zeros(residual.size, np.float16))
    return Residual(scale, (residual / np.float32(scale)).astype(np.float16))


def rounded_residuals(residuals: Mapping[str, F32 | None]) -> dict[str, Residual]:
    """Returns residuals as they are stored; one of zeros is as good as none and left out."""
    found = {n: rounded(residual) for n, residual in residuals.items() if residual is not None}
    return {name: residual for name, residual in found.items() if residual.scale}
