"""Rows of all agents of a fleet, ready for the program, in arrays that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.data.dataset import EmptyDataError, LocalDataset, build_dataset
from edge_agent.data.split import num_held_out
from fleet.agent_rows import RowLists
from fleet.participants import Participants

Array = NDArray[Any]
_INDEX, _OFFSETS, _TRAIN = "index.npy", "offsets.npy", "train.npy"
_COLUMN = "column-"


@dataclass(frozen=True, eq=False)
class AgentData:
    """Rows of n agents: those to learn from first, then those held out.

    Attributes:
        arrays: per column of the model, finished rows of all agents, shape (rows, *shape).
        index: rows of the agents in `arrays`, one agent behind the other.
        offsets: of the agents in `index`, int64, shape (n + 1,).
        num_train: rows of each agent that it learns from, int64, shape (n,).
    """

    arrays: Mapping[str, Array]
    index: Array
    offsets: NDArray[np.int64]
    num_train: NDArray[np.int64]

    @property
    def num_test(self) -> NDArray[np.int64]:
        """Rows of each agent that it measures on, shape (n,)."""
        held_out: NDArray[np.int64] = np.diff(self.offsets) - self.num_train
        return held_out

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights of their own."""
        return "weight" in self.arrays

    def starts(self, part: str) -> NDArray[np.int64]:
        """Returns where each agent's training or held-out rows begin in `index`, shape (n,)."""
        first = self.offsets[:-1]
        return first if part == "train" else first + self.num_train

    def counts(self, part: str) -> NDArray[np.int64]:
        """Returns the number of each agent's training or held-out rows, shape (n,)."""
        return self.num_train if part == "train" else self.num_test

    def dataset(self, number: int) -> LocalDataset:
        """Returns the rows of one agent as its own worker has them."""
        rows = self.index[self.offsets[number] : self.offsets[number + 1]]
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        numbers = np.arange(len(rows), dtype=np.int32)
        split = int(self.num_train[number])
        return LocalDataset(arrays, numbers[:split], numbers[split:], rows, {})

    def save(self, folder: Path) -> None:
        """Writes the arrays for other processes, which map them into their memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self.arrays.items():
            np.save(folder / f"{_COLUMN}{name}.npy", array)
        for file, array in ((_INDEX, self.index), (_OFFSETS, self.offsets)):
            np.save(folder / file, array)
        np.save(folder / _TRAIN, self.num_train)

    @classmethod
    def load(cls, folder: Path) -> AgentData:
        """Returns what `save` wrote, mapped."""
        columns = {
            file.stem.removeprefix(_COLUMN): np.load(file, mmap_mode="r")
            for file in sorted(folder.glob(f"{_COLUMN}*.npy"))
        }
        others = (np.load(folder / file, mmap_mode="r") for file in (_INDEX, _OFFSETS, _TRAIN))
        return cls(columns, *others)


def agent_data(participants: Participants) -> AgentData:
    """Returns the rows of all agents, each as `Participants.dataset` prepares them.

    Where all rows of the table are prepared alike it is done once, and agents hold indexes only.

    Raises:
        DataError: a row or an agent's data cannot be used.
    """
    return _shared(participants) if _is_alike(participants) else _each(participants)


def _is_alike(participants: Participants) -> bool:
    """Whether an agent's rows do not depend on its other rows."""
    data, table = participants.scenario.data, participants.table
    return (
        data.split == "time"
        and table.group is None
        and table.epoch is None
        and data.normalise != "device"
    )


def _shared(participants: Participants) -> AgentData:
    data = msgspec.structs.replace(participants.scenario.data, test_fraction=0.0)
    whole = build_dataset(participants.table, data, participants.spec)
    rows = participants.rows
    lists = RowLists(rows.index, rows.offsets)
    if len(whole.rows) < participants.table.rows:  # some cannot be used
        place = np.full(participants.table.rows, -1, np.int64)
        place[whole.rows] = np.arange(len(whole.rows))
        lists = _renumbered(lists, place)
    _check_none_empty(rows.names, lists)
    held_out = num_held_out(lists.sizes, participants.scenario.data.test_fraction)
    only_measure = [rows.position(name) for name in participants.unseen]
    held_out[only_measure] = lists.sizes[only_measure]
    return AgentData(whole.arrays, lists.index, lists.offsets, lists.sizes - held_out)


def _renumbered(lists: RowLists, place: NDArray[np.int64]) -> RowLists:
    """Returns lists of rows by their new places, without those that have none."""
    found = place[lists.index]
    owner = np.repeat(np.arange(len(lists)), lists.sizes)[found >= 0]
    sizes = np.bincount(owner, minlength=len(lists))
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return RowLists(found[found >= 0], offsets)


def _check_none_empty(names: Sequence[str], lists: RowLists) -> None:
    empty = np.flatnonzero(lists.sizes == 0)
    if len(empty):
        raise EmptyDataError(f"{names[int(empty[0])]}: no rows that can be used")


def _each(participants: Participants) -> AgentData:
    return joined([participants.dataset(name) for name in participants.rows])


def joined(datasets: Sequence[LocalDataset]) -> AgentData:
    """Returns the rows of agents that have their own, one agent behind the other."""
    sizes = np.array([data.num_train + data.num_test for data in datasets], np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    columns = datasets[0].arrays
    arrays = {name: np.concatenate([data.arrays[name] for data in datasets]) for name in columns}
    num_train = np.array([data.num_train for data in datasets], np.int64)
    return AgentData(arrays, np.arange(offsets[-1]), offsets, num_train)
