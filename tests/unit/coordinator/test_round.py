"""One round: who answered, and when that is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.round import Accept, Duplicate, Reject, Round


def round_of(agents: str = "abc", goal: int | None = None) -> Round:
    return Round(4, frozenset(agents), len(agents) if goal is None else goal)


Event = Callable[[Round], object]


def counted(agent_id: str, answer_id: str = "") -> Event:
    return lambda r: r.count(agent_id, answer_id)


def refused(agent_id: str, reason: str) -> Event:
    return lambda r: r.refuse(agent_id, reason)


def declined(agent_id: str, reason: str) -> Event:
    return lambda r: r.decline(agent_id, reason)


def offline(agent_id: str) -> Event:
    return lambda r: r.set_offline(agent_id, offline=True)


def reconnected(agent_id: str) -> Event:
    return lambda r: r.set_offline(agent_id, offline=False)


def deadline(r: Round) -> None:
    r.reach_deadline()


def feed(a_round: Round, *events: Event) -> str | None:
    """Returns how the last event closed the round; those before do not close it."""
    for event in events[:-1]:
        event(a_round)
        assert a_round.closed is None
    events[-1](a_round)
    return a_round.closed


def test_an_answer_that_was_asked_for_is_admitted_and_counts_when_it_was_found_good() -> None:
    r = round_of()
    assert r.offer("a", "1") == Accept()
    assert r.counted == {}
    r.count("a", "1")
    assert r.closed is None
    assert r.counted == {"a": "1"}
    assert r.waiting_for == {"b", "c"}


def test_it_closes_at_its_goal() -> None:
    assert feed(round_of(goal=2), counted("a"), counted("b")) == "goal"


def test_the_same_answer_again_is_neither_counted_nor_refused() -> None:
    r = round_of()
    r.count("a", "1")
    assert r.offer("a", "1") == Duplicate()
    assert r.counted == {"a": "1"}
    assert not r.refusals


def test_another_answer_of_the_same_agent_is_a_duplicate() -> None:
    r = round_of()
    r.count("a", "1")
    action = r.offer("a", "2")
    assert isinstance(action, Reject)
    assert action.reason == "duplicate"
    assert r.refusals == {"duplicate": 1}


def test_who_was_not_asked_is_rejected_open_or_closed() -> None:
    r = round_of()
    for _ in range(2):
        action = r.offer("z")
        assert isinstance(action, Reject)
        assert action.reason == "not_asked"
        r.reach_deadline()
    assert r.refusals == {"not_asked": 2}


def test_after_the_end_an_answer_is_late_and_one_that_counted_is_known() -> None:
    r = round_of(goal=1)
    r.count("a", "1")
    action = r.offer("b")
    assert isinstance(action, Reject)
    assert (action.reason, action.detail) == ("late", "round 4 closed (goal)")
    assert r.offer("a", "1") == Duplicate()


def test_a_refused_agent_is_not_waited_for_but_may_try_again() -> None:
    r = round_of()
    r.refuse("a", "norm")
    assert r.closed is None
    assert r.waiting_for == {"b", "c"}
    assert r.offer("a", "2") == Accept()
    r.count("a", "2")
    assert feed(r, counted("b"), counted("c")) == "goal"
    assert r.refusals == {"norm": 1}


def test_a_refusal_of_somebody_else_is_counted_and_changes_nothing() -> None:
    r = round_of("ab")
    r.refuse("z", "malformed")
    assert r.waiting_for == {"a", "b"}
    assert r.refused == {}
    assert r.refusals == {"malformed": 1}


@pytest.mark.parametrize("gone", [declined("c", "no_data"), offline("c"), refused("c", "norm")])
def test_when_nobody_is_left_to_wait_for_it_closes(gone: Event) -> None:
    assert feed(round_of(), counted("a"), counted("b"), gone) == "everyone"
    assert feed(round_of(), gone, counted("a"), counted("b")) == "everyone"


def test_everyone_lost_closes_with_nothing() -> None:
    r = round_of()
    assert feed(r, offline("a"), offline("b"), offline("c")) == "everyone"
    assert r.counted == {}


def test_who_returns_is_waited_for_again() -> None:
    r = round_of()
    feed(r, offline("c"), reconnected("c"), counted("a"), counted("b"))
    assert r.closed is None
    assert r.waiting_for == {"c"}


def test_who_counted_and_was_lost_still_counts() -> None:
    r = round_of("ab")
    assert feed(r, counted("a"), offline("a"), counted("b")) == "goal"
    assert set(r.counted) == {"a", "b"}


def test_a_late_word_that_it_declines_does_not_undo_an_update() -> None:
    r = round_of()
    r.count("a")
    r.decline("a", "stopping")
    r.refuse("a", "norm")
    assert (r.declined, r.refused, set(r.counted)) == ({}, {}, {"a"})


def test_the_words_of_those_that_decline_are_bounded() -> None:
    r = Round(4, frozenset(f"pi-{i}" for i in range(60)), 60)
    for i in range(60):
        r.decline(f"pi-{i}", f"reason_{i}", "d" * 1000)
    assert len(r.declined) == 60
    assert len(r.details) == 50
    assert {len(words) for words in r.details.values()} == {500}


def test_one_agent_that_declines_again_and_again_is_told_once() -> None:
    r = round_of("ab")
    for i in range(9):
        r.decline("a", f"reason_{i}", "words")
    assert (r.declined, r.details) == ({"a": "reason_8"}, {"reason_0": "a: words"})


@pytest.mark.parametrize("reason", ["", "Too hot", "r" * 65, "no_data\n"])
def test_a_reason_that_is_no_machine_name_is_told_in_words(reason: str) -> None:
    r = round_of("a")
    r.decline("a", reason, "words")
    assert r.declined == {"a": "other"}
    assert r.details == {"other": f"a: {reason}: words"}


def test_strangers_that_decline_or_are_lost_do_not_end_it() -> None:
    r = round_of("a")
    assert feed(r, declined("z", "no_data"), offline("y"), reconnected("y")) is None
    assert r.declined == {}
    assert r.waiting_for == {"a"}


def test_the_deadline_closes_it_once() -> None:
    r = round_of()
    assert feed(r, counted("a"), deadline) == "deadline"
    r.reach_deadline()
    r.set_offline("b", offline=True)
    assert r.closed == "deadline"


names = st.sampled_from("abcz")
answers = st.sampled_from(["1", "2"])
events: st.SearchStrategy[tuple[str, ...]] = st.one_of(
    st.tuples(st.just("offer"), names, answers),
    st.tuples(st.just("refuse"), names, st.just("norm")),
    st.tuples(st.just("decline"), names, st.just("no_data")),
    st.tuples(st.just("offline"), names),
    st.tuples(st.just("reconnected"), names),
    st.tuples(st.just("reach_deadline")),
)


@given(st.lists(events, max_size=40), st.integers(1, 3))
def test_whatever_happens_an_answer_counts_once_and_the_first_end_stays(
    happened: Sequence[tuple[str, ...]], goal: int
) -> None:
    r = round_of(goal=goal)
    accepted: list[str] = []
    ends: set[str] = set()
    for name, *arguments in happened:
        if name in ("offline", "reconnected"):
            r.set_offline(arguments[0], offline=name == "offline")
        elif name == "offer" and isinstance(r.offer(*arguments), Accept):
            accepted.append(arguments[0])
            r.count(*arguments)
        elif name != "offer":
            getattr(r, name)(*arguments)
        ends |= {r.closed} if r.closed else set()
    assert len(ends) <= 1
    assert len(accepted) == len(set(accepted)) == len(r.counted)
    assert set(accepted) <= r.cohort
    assert len(accepted) <= goal
    if r.closed is None:
        assert r.waiting_for


def test_a_stale_update_counts_beside_the_answers_and_only_once() -> None:
    r = round_of("ab")
    assert r.offer_stale("a", 3, "1") == Accept()
    r.count_stale("a", 3, "1")
    assert r.offer_stale("a", 3, "1") == Duplicate()
    again = r.offer_stale("a", 3, "2")
    assert isinstance(again, Reject)
    assert again.reason == "duplicate"
    assert r.waiting_for == {"a", "b"}  # it is no answer to this round
    assert r.offer("a", "5") == Accept()
    r.reach_deadline()
    late = r.offer_stale("b", 3, "1")
    assert isinstance(late, Reject)
    assert late.reason == "late"


def test_a_round_is_in_its_grace_while_only_doubtful_and_offline_agents_are_missing() -> None:
    round_ = Round(1, frozenset("abcd"), goal=4, minimum=4, doubtful=frozenset("d"))
    assert not round_.in_grace
    round_.count("a")
    round_.set_offline("b", offline=True)
    assert not round_.in_grace
    assert round_.is_waiting_for("c")
    round_.decline("c", "stopping")
    assert round_.in_grace
    assert (round_.is_waiting_for("c"), round_.is_waiting_for("d")) == (False, True)
    round_.set_offline("b", offline=False)
    assert not round_.in_grace
