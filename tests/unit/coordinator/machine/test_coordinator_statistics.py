"""A federation that asks for statistics: one phase, a table, and θ as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.config import CohortConfig, StartConfig
from coordinator.machine.events import Commit, Finished, SaveOpenRound, SaveRound, Waiting
from coordinator.storage.store import Store
from fedge.errors import ConfigError
from learning.algorithms.algorithm import ServerState
from learning.phases.registry import PHASES
from learning.phases.statistics import StatisticsSettings, to_values
from tests.unit.coordinator.machine.coordinator_stage import (
    PACKAGE,
    FakeAgent,
    Stage,
    config,
    only,
)

INCOME, ROOMS = "median_income", "rooms_per_household"
TASK = {"name": "statistics", "columns": {INCOME: [2.0]}}
#: Of the numbers 1, 2, 3 and 6; and of 2 and a missing one.
FOUR = (4.0, 0.0, 4.0, 3.0, 14.0, 1.0, 6.0, 1.0, 3.0)
TWO = (1.0, 1.0, 1.0, 2.0, 0.0, 2.0, 2.0, 0.0, 1.0)


def asking(**changes: Any) -> Any:
    return config(**({"task": TASK, "start": StartConfig(agents=2)} | changes))


def agents(stage: Stage, *names: str) -> list[FakeAgent]:
    return [FakeAgent(stage, name, phases=["train", "evaluate", "statistics"]) for name in names]


def answer(agent: FakeAgent, numbers: Any = FOUR, rows: int = 4, **changes: Any) -> Any:
    return agent.report("result", values={INCOME: numbers}, num_examples=rows, **changes)


def test_a_round_ends_with_the_table_of_all_devices() -> None:
    stage = Stage(asking())
    a, b = agents(stage, "a", "b")
    assert stage.plan.phase_name == "statistics"
    answer(a)
    answer(b, TWO, rows=2)
    record = stage.record
    assert (record.status, record.asked, record.reported, record.version) == ("answered", 2, 2, 0)
    assert record.closed == "goal"
    # 1, 2, 3, 6 and 2: mean 2.8, squares 14 + 0 + 1 · 4 / 5 · 1²
    found = to_values(record.statistics)[INCOME]
    assert found == pytest.approx((5, 1, 5, 2.8, 14.8, 1, 6, 1, 4))
    assert record.statistics[INCOME].edges == (2.0,)


def test_the_federation_ends_after_its_table_and_leaves_theta_alone() -> None:
    stage = Stage(asking())
    for agent in agents(stage, "a", "b"):
        answer(agent)
    assert only(stage.actions, Finished) == [Finished("answered")]
    assert stage.coordinator.finished == "answered"
    assert (stage.plan.state, stage.plan.phase_name) == ("finished", "statistics")
    assert not only(stage.actions, Commit)
    assert not only(stage.actions, SaveOpenRound)
    assert np.array_equal(stage.weights(), PACKAGE.initial)
    assert [saved.record.status for saved in only(stage.actions, SaveRound)] == ["answered"]


def test_a_plan_names_every_column_when_the_task_names_none() -> None:
    stage = Stage(asking(task="statistics"))
    agents(stage, "a", "b")
    settings = PHASES.settings(stage.plan.phase)
    assert isinstance(settings, StatisticsSettings)
    assert settings.columns == {INCOME: (), ROOMS: (), "target": ()}
    assert not settings.weighted


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            {"name": "statistics", "columns": {"median_incom": []}},
            "task.columns: 'median_incom' is no column of house_price; did you mean median_income?",
        ),
        ({"name": "statistics", "wombat": 1}, "task.wombat: unknown key"),
        ({"name": "statistics", "columns": {INCOME: [2, 1]}}, "task: .*must be finite and ascend"),
        ("evaluate", "task: 'evaluate' is no task"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_at_the_start(task: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Stage(asking(task=task))


def test_only_agents_that_know_statistics_are_asked() -> None:
    stage = Stage(asking(start=StartConfig(agents=1)))
    FakeAgent(stage, "old")
    assert only(stage.actions, Waiting)[-1] == Waiting(
        0, 1, lacking="1 does not take part in phase 'statistics'"
    )
    agents(stage, "new")
    assert stage.plan.cohort.ids == ("new",)


def test_who_declines_is_in_the_record_with_the_reason_and_the_words() -> None:
    stage = Stage(asking())
    a, b = agents(stage, "a", "b")
    b.report("declined", reason="not_allowed", detail="set statistics.allow")
    answer(a)
    assert stage.record.reported == 1
    assert stage.record.declined == {"b": "not_allowed"}
    assert stage.record.details == {"not_allowed": "b: set statistics.allow"}


@pytest.mark.parametrize(
    ("numbers", "rows"),
    [
        (FOUR[:-1], 4),
        ((-4.0, *FOUR[1:]), 4),
        ((*FOUR[:3], 7.0, *FOUR[4:]), 4),
        (FOUR, 3),
        (FOUR, 0),
    ],
)
def test_an_implausible_answer_is_refused_and_nobody_waits_for_another(
    numbers: Any, rows: int
) -> None:
    stage = Stage(asking())
    a, b = agents(stage, "a", "b")
    answer(b, numbers, rows)
    answer(a)
    record = stage.record
    assert (record.reported, record.refused, record.refusals) == (1, 1, {"statistics": 1})
    assert to_values(record.statistics) == {INCOME: FOUR}


def test_a_column_that_was_not_asked_for_is_refused() -> None:
    stage = Stage(asking())
    a, b = agents(stage, "a", "b")
    b.report("result", values={INCOME: FOUR, "pin_code": FOUR}, num_examples=4)
    answer(a)
    assert stage.record.refusals == {"statistics": 1}
    assert set(stage.record.statistics) == {INCOME}


def test_an_answer_that_comes_twice_counts_once() -> None:
    stage = Stage(asking())
    a, b = agents(stage, "a", "b")
    answer(a)
    answer(a)
    answer(b)
    assert stage.record.statistics[INCOME].count == 8


def test_too_few_answers_are_asked_for_again() -> None:
    stage = Stage(asking(cohort=CohortConfig(at_least=1)))
    a, b = agents(stage, "a", "b")
    a.report("declined", reason="not_allowed", detail="no")
    b.report("declined", reason="not_allowed", detail="no")
    assert (stage.record.status, stage.record.statistics) == ("abandoned", {})
    stage.later(2.0)
    assert (stage.plan.round_id, stage.plan.state) == (2, "open")
    answer(a)
    b.report("declined", reason="not_allowed", detail="no")
    assert (stage.record.round_id, stage.record.status) == (2, "answered")


def test_a_restart_before_the_end_asks_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(asking())
    a, _ = agents(stage, "a", "b")
    answer(a)
    assert only(stage.actions, SaveRound) == []
    second = Stage(asking(), start="c2", progress=store.load(PACKAGE.spec.size))
    a, b = agents(second, "a", "b")
    second.later(2.0)
    assert (second.plan.coordinator_instance, second.plan.phase_name) == ("c2", "statistics")
    answer(a)
    answer(b)
    assert second.record.statistics[INCOME].count == 8
    (saved,) = only(second.actions, SaveRound)
    store.save_round(saved.record, saved.closed)
    third = Stage(asking(), start="c3", progress=store.load(PACKAGE.spec.size))
    assert only(third.actions, Finished) == [Finished("answered")]
    assert store.rounds() == [second.record]
    store.close()


def test_columns_in_a_plan_leave_less_room_for_the_list_of_agents() -> None:
    columns = {INCOME: [float(n) for n in range(5000)]}
    task = {"name": "statistics", "columns": columns}
    stage = Stage(asking(task=task, cohort=CohortConfig(announce="ids")))
    room = stage.coordinator._publisher.max_cohort_bytes
    runner = stage.coordinator._rounds
    order = runner._protocol.first([f"{n:064d}" for n in range(room // 67 - 100)])
    assert runner._draw(order, 1).cohort.ids is None
    few = runner._protocol.first([f"{n:064d}" for n in range(room // 67 - 1000)])
    assert runner._draw(few, 1).cohort.ids is not None
