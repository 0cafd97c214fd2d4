"""Sums of many agents as columns: a fleet's figures without an object for each agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from learning.vector.metrics import MetricSpec, Sums, Total, metric_values
from learning.vector.parameters import F64


@dataclass(frozen=True, eq=False)
class SumsTable(Mapping[str, Sums]):
    """Sums by agent, read as a mapping.

    Attributes:
        names: of the n agents.
        loss: Σ weight · loss, shape (n,).
        weight: Σ weight, shape (n,).
        metrics: by name, shape (n,), or (n, k) of a metric of k numbers.
    """

    names: Sequence[str]
    loss: F64
    weight: F64
    metrics: Mapping[str, F64]

    @classmethod
    def of(cls, sums: Mapping[str, Sums]) -> SumsTable:
        """Returns the table of a mapping whose sums are all of the same metrics."""
        if isinstance(sums, SumsTable):
            return sums
        each = list(sums.values())
        metrics = each[0].metrics if each else {}
        return cls(
            list(sums),
            np.array([one.loss for one in each], np.float64),
            np.array([one.weight for one in each], np.float64),
            {name: np.array([one.metrics[name] for one in each], np.float64) for name in metrics},
        )

    @classmethod
    def joined(cls, tables: Sequence[SumsTable]) -> SumsTable:
        """Returns tables of the same metrics as one."""
        if len(tables) == 1:
            return tables[0]
        metrics = tables[0].metrics if tables else {}
        empty = np.empty(0, np.float64)
        return cls(
            [name for table in tables for name in table.names],
            np.concatenate([empty, *(table.loss for table in tables)]),
            np.concatenate([empty, *(table.weight for table in tables)]),
            {n: np.concatenate([table.metrics[n] for table in tables]) for n in metrics},
        )

    def select(self, kept: NDArray[np.bool_]) -> SumsTable:
        """Returns the agents of a mask of shape (n,)."""
        if kept.all():
            return self
        return SumsTable(
            [self.names[int(number)] for number in np.flatnonzero(kept)],
            self.loss[kept],
            self.weight[kept],
            {name: values[kept] for name, values in self.metrics.items()},
        )

    def total(self, factors: F64 | None = None) -> Sums:
        """Returns the sum over all agents, each times its factor, shape (n,)."""
        if factors is None:
            factors = np.ones(len(self))
        metrics = {n: _total(factors, values) for n, values in self.metrics.items()}
        return Sums(float(factors @ self.loss), float(factors @ self.weight), metrics)

    def __getitem__(self, name: str) -> Sums:
        return self.at(self._numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def at(self, number: int) -> Sums:
        """Returns the sums of an agent by its place."""
        metrics = {n: _as_total(values[number]) for n, values in self.metrics.items()}
        return Sums(float(self.loss[number]), float(self.weight[number]), metrics)


def values_by_agent(table: SumsTable, metrics: Sequence[MetricSpec]) -> list[dict[str, float]]:
    """Returns `learning.vector.metrics.metric_values` of each agent, in the table's order."""
    shown = [spec for spec in metrics if spec.kind != "confusion" and spec.name in table.metrics]
    if all(spec.kind in ("mean", "root_mean") for spec in shown):
        with np.errstate(over="ignore", invalid="ignore"):
            columns = {"loss": table.loss / table.weight}
            for spec in shown:
                mean = table.metrics[spec.name] / table.weight
                is_root = spec.kind == "root_mean"
                columns[spec.name] = np.sqrt(np.maximum(0.0, mean)) if is_root else mean
        if all(np.isfinite(column).all() for column in columns.values()):
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            return [dict(zip(columns, row, strict=True)) for row in rows]
    return [metric_values(table.at(place), metrics) for place in range(len(table))]


def joined_sums(sums: Mapping[str, Sums], tables: Sequence[SumsTable]) -> Mapping[str, Sums]:
    """Returns sums kept one by one and in tables as one mapping."""
    if not tables:
        return sums
    return SumsTable.joined([SumsTable.of(sums), *tables] if sums else tables)


def _total(factors: F64, values: F64) -> Total:
    return _as_total(factors @ values.astype(np.float64, copy=False))


def _as_total(value: F64) -> Total:
    return tuple(value.tolist()) if np.ndim(value) else float(value)
