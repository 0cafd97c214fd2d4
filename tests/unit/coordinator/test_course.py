"""Which version is the best, and who says so."""

from __future__ import annotations

from functools import reduce

from coordinator.records.course import Best, Course, Rule
from coordinator.records.records import RoundRecord
from tests.unit.coordinator.test_stopping import record


def measured(round_id: int, loss: float, agents: int) -> RoundRecord:
    return record(loss, round_id=round_id, version=round_id, measured=agents)


def course(*records: RoundRecord, metric: str = "loss") -> Course:
    return reduce(Course.after, records, Course(Rule(metric)))


def test_a_best_of_one_agent_is_outdone_by_any_of_three() -> None:
    alone = course(measured(1, 0.0, agents=1))
    assert alone.best == Best(1, 1, 0.0, measured=1)
    assert alone.after(measured(2, 5.0, agents=3)).best == Best(2, 2, 5.0, measured=3)


def test_one_agent_does_not_outdo_three_nor_use_up_their_patience() -> None:
    before = course(measured(1, 5.0, agents=3))
    for loss in (0.0, 9.0):
        after = before.after(measured(2, loss, agents=2))
        assert (after.best, after.value, after.without_gain) == (before.best, 5.0, 0)
    assert before.after(measured(2, 4.0, agents=4)).best_version == 2


def test_a_pair_of_agents_still_finds_its_best() -> None:
    found = course(*(measured(i, loss, agents=2) for i, loss in enumerate((3.0, 1.0, 2.0), 1)))
    assert (found.best_version, found.without_gain) == (2, 1)


def test_the_coordinators_own_rows_are_enough_alone() -> None:
    rounds = [
        record(1.0, round_id=i, version=i, metrics={"central_loss": loss}, measured=agents)
        for i, loss, agents in ((1, 2.0, 5), (2, 1.0, 1))
    ]
    assert course(*rounds, metric="central_loss").best_version == 2


def test_agents_that_never_learn_are_counted_for_their_own_figures() -> None:
    rounds = [
        record(
            1.0, round_id=i, version=i, metrics={"unseen_mae": mae}, measured=5, measured_unseen=n
        )
        for i, mae, n in ((1, 0.0, 1), (2, 3.0, 3))
    ]
    assert course(*rounds, metric="unseen_mae").best_version == 2


def test_the_first_loss_of_one_agent_is_replaced_and_never_the_usual_one() -> None:
    alone = course(measured(1, 1e90, agents=1))
    assert (alone.first_loss, alone.usual_loss) == (1e90, None)
    together = alone.after(measured(2, 4.0, agents=3))
    assert (together.first_loss, together.usual_loss) == (4.0, 4.0)
    assert together.after(measured(3, 1.0, agents=9)).first_loss == 4.0
