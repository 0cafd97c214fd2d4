"""Checkpoints of a simulation's columns: with the store and the agents' states, all to go on with.

The columns of a round are written before the store commits it. So the store's last round always
has its columns, whatever interrupts a simulation. A round that is measured after its commit has
two: a process that goes on with its measurement begins from those of its commit.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from fedge.errors import FleetError
from fedge.files import write_whole
from fleet.batched.cohort.device_states import file_sizes
from fleet.batched.cohort.task import Columns

#: Rounds whose columns are kept: of the one before too, should the latest never be committed.
_KEPT = 2
_NAME = re.compile(r"(\d+)-(?:committed|ended)\.npz")

Stage = Literal["committed", "ended"]


class Position(msgspec.Struct, frozen=True):
    """Where a simulation is, beside the columns.

    Attributes:
        now_s: virtual time.
        started_s: when the round that is not over yet was announced.
        pause_until_s: no round begins before it.
        abandoned: rounds in a row.
        bytes_up: from agents since the last round ended.
        bytes_down: to agents, likewise.
        blobs: SHA-256 of the blobs that the bits of `Columns.held` stand for.
    """

    now_s: float
    started_s: float = 0.0
    pause_until_s: float = 0.0
    abandoned: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    blobs: tuple[str, ...] = ()


class _Stored(msgspec.Struct, frozen=True):
    """A position, and the size of each file of device states by its path below the folder."""

    position: Position
    states: dict[str, int]


class Checkpoints:
    """Columns of the latest rounds.

    Args:
        folder: of the simulation.
        states: folder of the agents' states.
    """

    def __init__(self, folder: Path, states: Path) -> None:
        self._folder = folder / "columns"
        self._states = states

    def save(self, round_id: int, stage: Stage, columns: Columns, position: Position) -> None:
        """Writes the columns as they are when a round is committed, or has ended."""
        self._folder.mkdir(parents=True, exist_ok=True)
        stored = msgspec.json.encode(_Stored(position, file_sizes(self._states)))
        buffer = io.BytesIO()
        np.savez(buffer, *columns.all(), stored=np.frombuffer(stored, np.uint8))
        write_whole(self._path(round_id, stage), buffer.getvalue())
        for old in self._folder.glob("*.npz"):
            found = _NAME.fullmatch(old.name)
            if found and int(found[1]) <= round_id - _KEPT:
                old.unlink()

    def load(self, round_id: int, stage: Stage, columns: Columns) -> Position:
        """Reads the columns of the last round into `columns`.

        Args:
            round_id: of the round.
            stage: committed, when its measurement is left to do.
            columns: to be replaced.

        Raises:
            FleetError: there are none of this round, or of another number of agents; or states of
                agents are missing.
        """
        path = self._path(round_id, stage)
        try:
            # Of a damaged file numpy leaves open what it opens itself.
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                for number, column in enumerate(columns.all()):
                    column[:] = file[f"arr_{number}"]
                stored = msgspec.json.decode(file["stored"].tobytes(), type=_Stored)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise FleetError(
                f"{path}: the checkpoint of round {round_id} cannot be read ({error}); begin anew "
                "without --resume"
            ) from error
        self._check_states(stored.states)
        return stored.position

    def _check_states(self, expected: dict[str, int]) -> None:
        found = file_sizes(self._states)
        for name, size in expected.items():
            if found.get(name) != size:
                there = f"has {found[name]:,} bytes" if name in found else "is missing"
                raise FleetError(
                    f"{self._states / name}: {there}, {size:,} bytes of agents' states were "
                    "written; begin anew without --resume"
                )

    def _path(self, round_id: int, stage: Stage) -> Path:
        return self._folder / f"{round_id}-{stage}.npz"
