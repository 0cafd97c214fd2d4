"""One round: who answered, and when that is enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.round import (
    Admit,
    Again,
    Closed,
    Counted,
    DeadlineReached,
    Declined,
    Lost,
    Offered,
    Refused,
    Reject,
    Returned,
    Round,
    RoundAction,
    RoundEvent,
)


def round_of(agents: str = "abc", goal: int | None = None) -> Round:
    return Round(4, frozenset(agents), len(agents) if goal is None else goal)


def feed(a_round: Round, *events: RoundEvent) -> list[RoundAction]:
    """What the last of some events brought; those before bring no end."""
    for event in events[:-1]:
        assert not any(isinstance(x, Closed) for x in a_round.handle(event))
    return a_round.handle(events[-1])


def test_an_answer_that_was_asked_for_is_admitted_and_counts_when_it_was_found_good() -> None:
    r = round_of()
    assert r.handle(Offered("a", "1")) == [Admit("a")]
    assert r.counted == {}
    assert r.handle(Counted("a", "1")) == []
    assert r.counted == {"a": "1"}
    assert r.waiting_for == {"b", "c"}


def test_it_closes_at_its_goal() -> None:
    assert feed(round_of(goal=2), Counted("a"), Counted("b")) == [Closed("goal")]


def test_the_same_answer_again_is_neither_counted_nor_refused() -> None:
    r = round_of()
    r.handle(Counted("a", "1"))
    assert r.handle(Offered("a", "1")) == [Again("a")]
    assert r.counted == {"a": "1"}
    assert not r.refusals


def test_another_answer_of_the_same_agent_is_a_duplicate() -> None:
    r = round_of()
    r.handle(Counted("a", "1"))
    (action,) = r.handle(Offered("a", "2"))
    assert isinstance(action, Reject)
    assert (action.agent_id, action.reason) == ("a", "duplicate")
    assert r.refusals == {"duplicate": 1}


def test_who_was_not_asked_is_rejected_open_or_closed() -> None:
    r = round_of()
    for _ in range(2):
        (action,) = r.handle(Offered("z"))
        assert isinstance(action, Reject)
        assert action.reason == "not_asked"
        r.handle(DeadlineReached())
    assert r.refusals == {"not_asked": 2}


def test_after_the_end_an_answer_is_late_and_one_that_counted_is_known() -> None:
    r = round_of(goal=1)
    r.handle(Counted("a", "1"))
    (action,) = r.handle(Offered("b"))
    assert isinstance(action, Reject)
    assert (action.reason, action.detail) == ("late", "round 4 closed (goal)")
    assert r.handle(Offered("a", "1")) == [Again("a")]


def test_a_refused_agent_is_not_waited_for_but_may_try_again() -> None:
    r = round_of()
    assert r.handle(Refused("a", "norm")) == []
    assert r.waiting_for == {"b", "c"}
    assert r.handle(Offered("a", "2")) == [Admit("a")]
    r.handle(Counted("a", "2"))
    assert feed(r, Counted("b"), Counted("c")) == [Closed("goal")]
    assert r.refusals == {"norm": 1}


def test_a_refusal_of_somebody_else_is_counted_and_changes_nothing() -> None:
    r = round_of("ab")
    r.handle(Refused("z", "malformed"))
    assert r.waiting_for == {"a", "b"}
    assert r.refused == {}
    assert r.refusals == {"malformed": 1}


@pytest.mark.parametrize("gone", [Declined("c", "no_data"), Lost("c"), Refused("c", "norm")])
def test_when_nobody_is_left_to_wait_for_it_closes(gone: RoundEvent) -> None:
    assert feed(round_of(), Counted("a"), Counted("b"), gone) == [Closed("everyone")]
    assert feed(round_of(), gone, Counted("a"), Counted("b")) == [Closed("everyone")]


def test_everyone_lost_closes_with_nothing() -> None:
    r = round_of()
    assert feed(r, Lost("a"), Lost("b"), Lost("c")) == [Closed("everyone")]
    assert r.counted == {}


def test_who_returns_is_waited_for_again() -> None:
    r = round_of()
    feed(r, Lost("c"), Returned("c"), Counted("a"), Counted("b"))
    assert r.closed is None
    assert r.waiting_for == {"c"}


def test_who_counted_and_was_lost_still_counts() -> None:
    r = round_of("ab")
    assert feed(r, Counted("a"), Lost("a"), Counted("b")) == [Closed("goal")]
    assert set(r.counted) == {"a", "b"}


def test_a_late_word_that_it_declines_does_not_undo_an_update() -> None:
    r = round_of()
    r.handle(Counted("a"))
    r.handle(Declined("a", "stopping"))
    r.handle(Refused("a", "norm"))
    assert (r.declined, r.refused, set(r.counted)) == ({}, {}, {"a"})


def test_strangers_that_decline_or_are_lost_do_not_end_it() -> None:
    r = round_of("a")
    assert feed(r, Declined("z", "no_data"), Lost("y"), Returned("y")) == []
    assert r.declined == {}
    assert r.waiting_for == {"a"}


def test_the_deadline_closes_it_once() -> None:
    r = round_of()
    assert feed(r, Counted("a"), DeadlineReached()) == [Closed("deadline")]
    assert r.handle(DeadlineReached()) == []
    assert r.handle(Lost("b")) == []
    assert r.closed == "deadline"


names = st.sampled_from("abcz")
answers = st.sampled_from(["1", "2"])
events: st.SearchStrategy[RoundEvent] = st.one_of(
    st.builds(Offered, names, answers),
    st.builds(Refused, names, st.just("norm")),
    st.builds(Declined, names, st.just("no_data")),
    st.builds(Lost, names),
    st.builds(Returned, names),
    st.just(DeadlineReached()),
)


@given(st.lists(events, max_size=40), st.integers(1, 3))
def test_whatever_happens_an_answer_counts_once_and_the_end_comes_once(
    happened: Sequence[RoundEvent], goal: int
) -> None:
    r = round_of(goal=goal)
    ends = 0
    counted: list[str] = []
    for event in happened:
        for action in r.handle(event):
            if isinstance(action, Admit):
                assert isinstance(event, Offered)
                counted.append(action.agent_id)
                ends += len(r.handle(Counted(event.agent_id, event.answer_id)))
            ends += isinstance(action, Closed)
    assert ends <= 1
    assert (ends == 1) == (r.closed is not None)
    assert len(counted) == len(set(counted)) == len(r.counted)
    assert set(counted) <= r.asked
    assert len(counted) <= goal
    if r.closed is None:
        assert r.waiting_for
