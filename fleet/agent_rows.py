"""Rows of all agents of a fleet in two arrays, whatever the number of agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edge_agent.data.table import Index

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class RowLists:
    """Lists of row numbers, one behind the other; each item is a view.

    Attributes:
        index: of all lists, shape (total,), int32 where the numbers fit.
        offsets: of the lists in `index`, int64, shape (lists + 1,).
    """

    index: Index
    offsets: NDArray[np.int64]

    @classmethod
    def of_owners(cls, owner: Array, owners: int) -> RowLists:
        """Returns the rows of each owner, ascending.

        Args:
            owner: of each row, 0 to owners - 1, shape (n,).
            owners: number of owners.
        """
        # Radix sort of 16 bits is several times as fast as the sort of wider integers.
        narrow = owner.astype(np.uint16) if owners <= 1 << 16 else owner
        order = np.argsort(narrow, kind="stable")
        sizes = np.bincount(owner, minlength=owners)
        return cls(_narrow(order), np.concatenate(([0], np.cumsum(sizes))).astype(np.int64))

    def __post_init__(self) -> None:
        self.index.flags.writeable = False
        self.offsets.flags.writeable = False

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of rows of each list, shape (lists,)."""
        sizes: NDArray[np.int64] = np.diff(self.offsets)
        return sizes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Index:
        place = range(len(self))[number]
        return self.index[self.offsets[place] : self.offsets[place + 1]]

    def __iter__(self) -> Iterator[Index]:
        return (self[number] for number in range(len(self)))

    def taken(self, numbers: Array) -> RowLists:
        """Returns the lists with these numbers, in their order."""
        sizes = self.sizes[numbers]
        offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        return RowLists(self.index[np.repeat(self.offsets[:-1][numbers], sizes) + within], offsets)

    def in_time(self, epoch: NDArray[np.float64]) -> RowLists:
        """Returns each list without the rows that have no time, the others in its order.

        Args:
            epoch: time of each row of the table; NaN where it has none.
        """
        owner = np.repeat(np.arange(len(self)), self.sizes)
        timed = np.isfinite(epoch[self.index])
        index, owner = self.index[timed], owner[timed]
        sizes = np.bincount(owner, minlength=len(self))
        offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        # Stable: rows of one time stay as they are.
        return RowLists(index[np.lexsort((epoch[index], owner))], offsets)


def _narrow(index: Array) -> Index:
    return index.astype(np.int32 if len(index) < 2**31 else np.int64)


class NumberedNames(Sequence[str]):
    """Names `PREFIX-0`, `PREFIX-1` ..., made when they are asked for."""

    def __init__(self, prefix: str, count: int) -> None:
        self.prefix = prefix
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[str]: ...

    def __getitem__(self, number: int | slice) -> str | Sequence[str]:
        if isinstance(number, slice):
            return [f"{self.prefix}-{n}" for n in self._numbers[number]]
        return f"{self.prefix}-{self._numbers[number]}"

    def __iter__(self) -> Iterator[str]:
        return (f"{self.prefix}-{number}" for number in self._numbers)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def index(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """Returns the number of a name; raises ValueError where there is none."""
        number = self._find(name)
        if number is None or number not in self._numbers[start:stop]:
            raise ValueError(f"no name {name!r}")
        return number

    def _find(self, name: str) -> int | None:
        prefix, _, digits = name.rpartition("-")
        # The length first: Python refuses to read a number of thousands of digits.
        if prefix != self.prefix or len(digits) > len(str(len(self))) or not digits.isdecimal():
            return None
        number = int(digits)
        return number if number < len(self) and str(number) == digits else None


class RowsByAgent(Mapping[str, Index]):
    """The rows of each agent by its name; each item is a view.

    Args:
        names: of the agents, each once.
        lists: rows of each agent, in the order of the names.

    Attributes:
        names: likewise.
        index: rows of all agents one behind the other; see `RowLists`.
        offsets: of the agents in `index`, shape (agents + 1,).
    """

    def __init__(self, names: Sequence[str], lists: RowLists) -> None:
        self.names = names
        self._lists = lists
        self.index, self.offsets = lists.index, lists.offsets

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of rows of each agent, shape (agents,)."""
        return self._lists.sizes

    def position(self, name: str) -> int:
        """Returns the place of an agent in `names`; raises KeyError where there is none."""
        if isinstance(self.names, NumberedNames):
            try:
                return self.names.index(name)
            except ValueError:
                raise KeyError(name) from None
        return self._positions[name]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def __getitem__(self, name: str) -> Index:
        return self._lists[self.position(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def taken(self, numbers: Array) -> RowsByAgent:
        """Returns some of the agents, by their places."""
        if len(numbers) == len(self):
            return self
        names = tuple(self.names[number] for number in numbers.tolist())
        return RowsByAgent(names, self._lists.taken(numbers))

    def in_time(self, epoch: NDArray[np.float64] | None) -> RowsByAgent:
        """Returns the rows that have a time, in its order; all as they are without times."""
        return self if epoch is None else RowsByAgent(self.names, self._lists.in_time(epoch))
