"""How an agent stands with its federation."""

from __future__ import annotations

from coordinator.machine.standing import UNTIL_RELEASED, Standing


def test_an_agent_of_whom_nothing_is_known_may_be_asked() -> None:
    assert Standing().may_be_asked(1)


def test_a_quarantine_ends_with_its_round_or_with_a_release() -> None:
    for_a_while = Standing().quarantined("3 updates refused (norm)", until_round=9)
    assert [for_a_while.may_be_asked(number) for number in (8, 9, 10)] == [False, True, True]
    for_good = Standing().quarantined("tests", by_operator=True)
    assert for_good.quarantined_until_round == UNTIL_RELEASED
    assert not for_good.may_be_asked(1_000_000)
    assert for_good.released().may_be_asked(1)


def test_a_rule_does_not_shorten_what_an_operator_said() -> None:
    said = Standing().quarantined("broken sensor", by_operator=True)
    assert said.quarantined("norm", until_round=3) == said
    assert Standing().quarantined("norm", 3).quarantined("mine", by_operator=True).by_operator


def test_a_release_forgives_refusals_and_keeps_the_count_of_what_was_accepted() -> None:
    standing = Standing(refusals={"norm": 3}, accepted=7).quarantined("3 refused", 5)
    assert standing.released() == Standing(accepted=7)
