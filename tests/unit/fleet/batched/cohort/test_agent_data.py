"""Rows of all agents in arrays that they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fleet.batched.cohort.agent_data import AgentData, agent_data
from fleet.participants import Participants
from tests.unit.fleet.batched.fleets import make_fleet


def participants(name: str) -> Participants:
    return make_fleet(name, {}, "bytes", vectorized=False).participants


@pytest.mark.parametrize(
    "name", ["house_price", "heart_disease", "wearable_activity", "machine_wear", "road_traffic"]
)
def test_every_agent_has_the_rows_that_its_own_worker_would_have(name: str) -> None:
    them = participants(name)
    found = agent_data(them)
    for number, agent in enumerate(them.rows):
        own, expected = found.dataset(number), them.dataset(agent)
        assert (own.num_train, own.num_test) == (expected.num_train, expected.num_test)
        for part in ("train", "test"):
            for column, array in expected.part(part).items():
                np.testing.assert_array_equal(own.part(part)[column], array)


def test_rows_that_are_prepared_alike_are_in_memory_once() -> None:
    them = participants("house_price")
    found = agent_data(them)
    assert found.index is not None
    rows = next(iter(found.arrays.values()))
    assert len(rows) == them.table.rows


def test_rows_are_read_again_from_disk_as_they_were(tmp_path: Path) -> None:
    data = agent_data(participants("heart_disease"))
    data.save(tmp_path)
    again = AgentData.load(tmp_path)
    for column, array in data.arrays.items():
        np.testing.assert_array_equal(again.arrays[column], array)
    for name in ("index", "offsets", "num_train"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
