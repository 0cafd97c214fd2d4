"""Batches of a cohort: the rows that each agent's own trainer would take."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.training.trainer import _batches
from fleet.batched.cohort.agent_data import AgentData
from fleet.batched.cohort.batches import (
    CommonShuffles,
    OwnShuffles,
    groups_of_steps,
    held_out_rows,
    number_of_steps,
    training_batches,
)
from learning.algorithms.training import TrainingPlan


def data(*counts: int, held_out: int = 2) -> AgentData:
    """Agents with so many training rows; each row's number is its value."""
    sizes = np.array(counts) + held_out
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    index = np.arange(offsets[-1])[::-1].copy()
    return AgentData({"x": np.arange(offsets[-1]) * 10}, index, offsets, np.array(counts))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("size", [0, 2, 4, 50])
@pytest.mark.parametrize("max_steps", [0, 1, 4])
def test_each_agent_gets_the_batches_of_its_own_trainer(
    epochs: int, size: int, max_steps: int
) -> None:
    plan = TrainingPlan(epochs=epochs, batch_size=size, max_steps=max_steps)
    fleet = data(5, 6, 5)
    agents = np.array([0, 1, 2])
    (group,) = groups_of_steps(fleet.num_train, plan)
    assert sorted(group.tolist()) == [0, 1, 2]
    shuffles = OwnShuffles(lambda place: np.random.default_rng(place))
    found = list(training_batches(fleet, agents, plan, shuffles))
    for place in agents.tolist():
        rows = fleet.dataset(place).part("train")["x"]
        count = int(fleet.num_train[place])
        expected = list(_batches(count, plan, np.random.default_rng(place)))
        assert len(found) == len(expected) == number_of_steps(count, plan)
        for batch, (epoch, index) in zip(found, expected, strict=True):
            own = slice(None) if batch.weight is None else batch.weight[place] > 0
            assert batch.epoch == epoch
            wanted = rows if index is None else rows[index]
            np.testing.assert_array_equal(batch.rows["x"][place][own], wanted)


def test_agents_of_other_numbers_of_steps_are_other_groups() -> None:
    counts = np.array([1, 9, 4, 8, 5])
    groups = groups_of_steps(counts, TrainingPlan(batch_size=4))
    assert [sorted(group.tolist()) for group in groups] == [[0, 2], [3, 4], [1]]
    assert len(groups_of_steps(counts, TrainingPlan(batch_size=0))) == 1


def test_common_orders_are_orders_of_each_agent_s_rows() -> None:
    orders = CommonShuffles(np.random.default_rng(1)).orders(np.array([3, 5]), epochs=2)
    assert orders.shape == (2, 2, 5)
    for epoch in orders:
        assert sorted(epoch[0][:3].tolist()) == [0, 1, 2]
        assert sorted(epoch[1].tolist()) == [0, 1, 2, 3, 4]
    assert not np.array_equal(orders[0], orders[1])


def test_held_out_rows_come_with_their_padding_named() -> None:
    fleet = data(3, 4)
    rows, weight = held_out_rows(fleet, np.array([1, 0]), "train")
    assert rows["x"].shape == (2, 4)
    assert weight is not None
    assert weight.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    rows, weight = held_out_rows(fleet, np.array([0, 1]), "test")
    assert weight is None
    np.testing.assert_array_equal(rows["x"][0], fleet.dataset(0).part("test")["x"])
