"""Checkpoints of a simulation's columns: with the store and the agents' states, all to go on with.

The columns of a round are written before the store commits it. So the store's last round always
has its columns, whatever interrupts a simulation.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fedge.errors import FleetError
from fedge.files import write_whole
from fleet.batched.cohort.task import Columns

#: Rounds whose columns are kept: of the one before too, should the latest never be committed.
_KEPT = 2


class Checkpoints:
    """Columns of the latest rounds.

    Args:
        folder: of the simulation.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "columns"

    def save(self, round_id: int, columns: Columns, now_s: float) -> None:
        """Writes the columns as they are after a round's phase."""
        self._folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, *columns.all(), now_s=np.float64(now_s))
        write_whole(self._path(round_id), buffer.getvalue())
        for old in self._folder.glob("*.npz"):
            if int(old.stem) <= round_id - _KEPT:
                old.unlink()

    def load(self, round_id: int, columns: Columns) -> float:
        """Reads the columns of a round into `columns`; returns the virtual time.

        Raises:
            FleetError: there are none of this round, or of another number of agents.
        """
        path = self._path(round_id)
        try:
            with np.load(path, allow_pickle=False) as file:
                for number, column in enumerate(columns.all()):
                    column[:] = file[f"arr_{number}"]
                return float(file["now_s"])
        except (OSError, ValueError, KeyError) as error:
            raise FleetError(
                f"{path}: the checkpoint of round {round_id} cannot be read ({error}); begin anew "
                "without --resume"
            ) from error

    def _path(self, round_id: int) -> Path:
        return self._folder / f"{round_id}.npz"
