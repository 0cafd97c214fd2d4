"""Sums of many agents as columns."""

from __future__ import annotations

import numpy as np
import pytest

from learning.vector.metrics import Sums, add_sums
from learning.vector.sums_table import SumsTable, joined_sums

SUMS = {
    "pi-1": Sums(1.0, 2.0, {"accuracy": 1.0, "auc": (1.0, 0.0, 0.5)}),
    "pi-2": Sums(4.0, 3.0, {"accuracy": 3.0, "auc": (0.0, 2.0, 0.5)}),
    "pi-3": Sums(0.5, 1.0, {"accuracy": 0.0, "auc": (1.0, 1.0, 0.0)}),
}


def test_a_table_reads_like_the_mapping_it_was_made_of() -> None:
    table = SumsTable.of(SUMS)
    assert dict(table) == SUMS
    assert list(table) == list(SUMS)
    assert len(table) == 3
    assert SumsTable.of(table) is table


def test_the_total_is_the_sum_of_all() -> None:
    assert SumsTable.of(SUMS).total() == add_sums(SUMS.values())


def test_factors_scale_each_agents_sums() -> None:
    total = SumsTable.of(SUMS).total(np.array([0.5, 0.0, 2.0]))
    assert total == Sums(1.5, 3.0, {"accuracy": 0.5, "auc": (2.5, 2.0, 0.25)})


def test_a_selection_has_the_agents_of_the_mask() -> None:
    table = SumsTable.of(SUMS)
    assert dict(table.select(np.array([True, False, True]))) == {
        name: SUMS[name] for name in ("pi-1", "pi-3")
    }
    assert table.select(np.ones(3, bool)) is table


def test_tables_and_single_sums_are_joined() -> None:
    first = {"pi-1": SUMS["pi-1"]}
    rest = SumsTable.of({name: SUMS[name] for name in ("pi-2", "pi-3")})
    assert dict(joined_sums(first, [rest])) == SUMS
    assert joined_sums(first, []) is first
    assert dict(joined_sums({}, [rest, SumsTable.of(first)])) == SUMS


def test_of_nobody_the_total_is_nothing() -> None:
    assert SumsTable.of({}).total() == Sums(0.0, 0.0, {})
    with pytest.raises(KeyError):
        SumsTable.of({})["pi-1"]
