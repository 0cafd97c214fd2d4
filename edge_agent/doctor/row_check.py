"""Check of every row of a device, before a round is lost to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite

import numpy as np

from edge_agent.data.dataset import LocalDataset
from edge_agent.data.table import Table
from fedge.errors import DataError, TrainingError
from learning.vector.metrics import Sums, add_sums
from learning.vector.parameters import F32
from models.runtime.program import Program
from models.runtime.rows import Rows


def try_rows(program: Program, theta: F32, table: Table, data: LocalDataset) -> Sums:
    """Computes gradients of all training rows, and loss and metrics of those held out.

    Some numbers are only found wrong by the program: an index beyond an embedding's vocabulary,
    values so large that the loss overflows.

    Args:
        program: of the model.
        theta: float32, shape (spec.whole_size,).
        table: of the file, which knows where a row is in it.
        data: the dataset of the table.

    Returns:
        Sums over the rows held out; over the others where none are.

    Raises:
        DataError: the program fails, or its loss or gradient is not finite; names the row.
    """
    trial = _Trial(program.spec.batch_size, table, data)
    trial.run(0, data.num_train, lambda rows: _learn(program, theta, rows))
    measured = data.num_train if data.num_test else 0
    sums: list[Sums] = []

    def measure(rows: Rows) -> str:
        sums.append(program.evaluate(theta, rows))
        return _trouble(sums[-1].loss, sums[-1].weight)

    trial.run(measured, data.num_train + data.num_test, measure)
    return add_sums(sums)


class _Trial:
    """Works on some rows at a time, and names the row that fails."""

    def __init__(self, size: int, table: Table, data: LocalDataset) -> None:
        self._size = size
        self._table = table
        self._data = data

    def run(self, first: int, end: int, work: Callable[[Rows], str]) -> None:
        """Calls `work`, which returns what is wrong with its rows; empty: nothing."""
        for start, stop in _parts(first, end, self._size):
            if trouble := self._try(start, stop, work):
                raise DataError(f"{self._place(start, stop, work)}: {trouble}")

    def _try(self, start: int, stop: int, work: Callable[[Rows], str]) -> str:
        rows = {name: array[start:stop] for name, array in self._data.arrays.items()}
        if "weight" in rows and not rows["weight"].any():
            return ""  # passed over in a round as well
        try:
            return work(rows)
        except TrainingError as error:
            return str(error)

    def _place(self, start: int, stop: int, work: Callable[[Rows], str]) -> str:
        for row in range(start, stop):
            if self._try(row, row + 1, work):
                return self._table.place(int(self._data.rows[row]))
        where = self._table.place(int(self._data.rows[start]))
        return f"{where} and the {stop - start - 1} after it together"


def _parts(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(first, end, size):
        yield start, min(start + size, end)


def _learn(program: Program, theta: F32, rows: Rows) -> str:
    step = program.gradient(theta, rows)
    if trouble := _trouble(step.loss, step.weight):
        return trouble
    return "" if np.isfinite(step.vector).all() else "the gradient of the loss is not finite"


def _trouble(loss_sum: float, weight: float) -> str:
    if isfinite(loss_sum):
        return ""
    return f"the loss of the untrained model is {loss_sum / weight:g}: look for huge values"
