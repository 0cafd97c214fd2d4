"""Rows of agents: a mapping of names to views of two arrays."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fleet.agent_rows import NumberedNames, RowLists, RowsByAgent
from fleet.partition import PartitionConfig, partition

LISTS = RowLists.of_owners(np.array([2, 0, 2, 3, 0]), 4)


def content(rows: RowsByAgent) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in rows.items()}


def test_rows_are_listed_for_each_owner_in_ascending_order() -> None:
    assert [part.tolist() for part in LISTS] == [[1, 4], [], [0, 2], [3]]
    assert (LISTS.offsets.tolist(), LISTS.sizes.tolist()) == ([0, 2, 2, 4, 5], [2, 0, 2, 1])
    assert LISTS[-1].tolist() == [3]
    with pytest.raises(IndexError):
        LISTS[4]


def test_an_agents_rows_are_a_view_that_cannot_be_changed() -> None:
    rows = RowsByAgent(NumberedNames("a", 4), LISTS)
    assert np.shares_memory(rows["a-2"], rows.index)
    with pytest.raises(ValueError, match="read-only"):
        rows["a-2"][0] = 7


def test_some_agents_keep_their_names_and_rows() -> None:
    rows = RowsByAgent(NumberedNames("a", 4), LISTS)
    some = rows.taken(np.array([0, 1, 3]))
    assert content(some) == {"a-0": [1, 4], "a-1": [], "a-3": [3]}
    assert some.position("a-3") == 2
    assert rows.taken(np.arange(4)) is rows


def test_rows_without_a_time_go_and_the_others_are_put_in_its_order() -> None:
    epoch = np.array([9.0, 5.0, 9.0, np.nan, 4.0])
    rows = RowsByAgent(NumberedNames("a", 4), LISTS)
    assert content(rows.in_time(epoch)) == {"a-0": [4, 1], "a-1": [], "a-2": [0, 2], "a-3": []}
    assert rows.in_time(None) is rows


@pytest.mark.parametrize(
    "name", ["a-4", "a-01", "a--1", "a-", "a", "b-1", "a-\u0661", "-1", "a-" + "1" * 5000, ""]
)
def test_a_name_that_no_agent_has_is_not_found(name: str) -> None:
    names = NumberedNames("a", 4)
    assert name not in names
    assert name not in RowsByAgent(names, LISTS)
    with pytest.raises(KeyError):
        RowsByAgent(names, LISTS)[name]


def test_numbered_names_are_a_sequence_of_texts() -> None:
    names = NumberedNames("site-1", 3)
    assert [*names] == ["site-1-0", "site-1-1", "site-1-2"] == [names[n] for n in range(3)]
    assert (names[-1], names[1:], names.index("site-1-1")) == ("site-1-2", [*names][1:], 1)
    assert "site-1-2" in names


def test_an_agent_takes_few_bytes_beyond_its_rows() -> None:
    config = PartitionConfig(kind="sample", clients=20_000, rows=16)
    rng, labels = np.random.default_rng(0), np.zeros(500)
    tracemalloc.start()
    rows = partition(config, labels, None, rng)
    for _, index in rows.items():
        assert len(index) == 16
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held - rows.index.nbytes < 50 * len(rows)
