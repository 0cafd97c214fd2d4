"""Device states of many agents between rounds, in files that are mapped into memory.

What an agent remembers is there twice: the state that counts, and room for the next one. A column
of the fleet says which is which, so that a round that is repeated begins from the same states.
Files are sparse: agents that were never asked take no space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.machine.device_state import MIN_SCALE, DeviceState, Residual
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

Array = NDArray[Any]
Slots = NDArray[np.uint8]

_RESIDUAL, _SCALE, _VECTOR, _PERSONAL = "residual", "scale", "vector", "personal"
_FILE = re.compile(r"(residual|scale|vector|personal)-(\w+)\.npy")


@dataclass(frozen=True, eq=False)
class CohortState:
    """States of n agents.

    Attributes:
        residuals: error-feedback residuals by uploaded vector, float32, [n, L].
        vectors: what the algorithm remembers, float32, [n, L].
        personal: personal layers, float32, [n, Q]; None: the model has none.
    """

    residuals: Vectors
    vectors: Vectors
    personal: F32 | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remember."""
        return not self.residuals and not self.vectors and self.personal is None


NOTHING = CohortState({}, {})


class DeviceStates:
    """States of the agents of one part of a fleet.

    Args:
        folder: of the files; made when there is something to remember. None: states are in memory.
        count: number of agents.
    """

    def __init__(self, folder: Path | None, count: int) -> None:
        self._folder = folder
        self._count = count
        self._files: dict[tuple[str, str], Array] = {}
        if folder is not None and folder.is_dir():
            for path in folder.iterdir():
                if found := _FILE.fullmatch(path.name):
                    self._files[found[1], found[2]] = np.load(path, mmap_mode="r+")

    def read(self, agents: Array, slots: Slots) -> CohortState:
        """Returns the states of agents that have one.

        Args:
            agents: numbers, shape (n,).
            slots: of each agent, 1 or 2.
        """
        at = (slots - 1, agents)
        residuals = {
            name: _unrounded(halves[at], self._files[_SCALE, name][at])
            for (kind, name), halves in self._files.items()
            if kind == _RESIDUAL
        }
        vectors = {n: file[at] for (kind, n), file in self._files.items() if kind == _VECTOR}
        personal = self._files.get((_PERSONAL, "layers"))
        return CohortState(residuals, vectors, None if personal is None else personal[at])

    def write(self, agents: Array, slots: Slots, state: CohortState) -> Slots:
        """Writes the next states, beside the ones that count; returns their slots.

        Args:
            agents: numbers, shape (n,).
            slots: of each agent now; 0: it has no state.
            state: of the agents; what it lacks, they do not remember any more.
        """
        if state.is_empty and not self._files:
            return slots
        after: Slots = np.where(slots == 1, 2, 1).astype(np.uint8)
        at = (after - 1, agents)
        for name, residual in state.residuals.items():
            halves, scale = _rounded(residual)
            self._file(_RESIDUAL, name, np.float16, halves.shape[1:])[at] = halves
            self._file(_SCALE, name, np.float32, ())[at] = scale
        for name, vector in state.vectors.items():
            self._file(_VECTOR, name, np.float32, vector.shape[1:])[at] = vector
        if state.personal is not None:
            shape = state.personal.shape[1:]
            self._file(_PERSONAL, "layers", np.float32, shape)[at] = state.personal
        for (kind, name), file in self._files.items():
            left = state.vectors if kind == _VECTOR else state.residuals
            if kind != _PERSONAL and name not in left:
                file[at] = 0
        return after

    def _file(self, kind: str, name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
        key = (kind, name)
        if key not in self._files and self._folder is None:
            self._files[key] = np.zeros((2, self._count, *shape), dtype)
        elif key not in self._files:
            assert self._folder is not None, "looked at above"
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{kind}-{name}.npy"
            made = (2, self._count, *shape)
            np.lib.format.open_memmap(path, "w+", dtype, made)  # type: ignore[no-untyped-call]
            self._files[key] = np.load(path, mmap_mode="r+")
        return self._files[key]


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the bytes of the state files of all parts of a fleet, by their path."""
    if not folder.is_dir():
        return {}
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.glob("*/*.npy"))
        if _FILE.fullmatch(path.name)
    }


def device_state(
    state: CohortState, place: int, model: str, session: str, algorithm: str
) -> DeviceState:
    """Returns the state of one agent as its own machine has it."""
    residuals = {}
    for name, vectors in state.residuals.items():
        halves, scale = _rounded(vectors[place][None])
        if scale[0]:
            residuals[name] = Residual(float(scale[0]), halves[0])
    own = {name: vector[place] for name, vector in state.vectors.items()}
    personal = None if state.personal is None else state.personal[place]
    return DeviceState(model, session, residuals, algorithm, own, personal)


def _rounded(residuals: F32) -> tuple[NDArray[np.float16], F32]:
    """Returns residuals as devices store them; see `edge_agent.machine.device_state.rounded`."""
    scales = np.abs(residuals).max(axis=1, initial=0.0).astype(np.float32)
    scales[scales < MIN_SCALE] = 0
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    halves = (residuals / divisors).astype(np.float16)
    halves[scales == 0] = 0
    return halves, scales


def _unrounded(halves: NDArray[np.float16], scales: F32) -> F32:
    found: F32 = halves.astype(np.float32) * scales[:, None]
    return found
