"""A fleet run ends when too few of its agents can take part, and names them."""

import re

import pytest

from fedge.errors import ConfigError
from fleet.runs.availability import Availability

LEARNERS = [f"a-{n}" for n in range(4)]


def test_a_run_ends_when_too_few_agents_can_take_part() -> None:
    availability = Availability(LEARNERS, 2)
    for name in LEARNERS[:2]:
        availability.report(name, "no_data: 1.5 is no whole number", is_transient=False)
    availability.check(set())
    availability.report("unseen", "no_data: x", is_transient=False)
    availability.check(set())
    why = "3 of 4 agents cannot take part, a round needs 2; a-0: no_data: 1.5 is no whole number"
    availability.report("a-2", "no_data: x", is_transient=False)
    with pytest.raises(ConfigError, match=re.escape(why)):
        availability.check(set())


def test_ended_agents_do_not_count_as_available() -> None:
    availability = Availability(LEARNERS, 2)
    availability.check(set(LEARNERS[:3]))  # ended processes alone are not its concern
    availability.report("a-0", "no_data: x", is_transient=False)
    with pytest.raises(ConfigError, match="1 of 4 agents"):
        availability.check(set(LEARNERS[1:3]))


def test_a_transient_reason_does_not_end_the_run() -> None:
    availability = Availability(LEARNERS, 1)
    for name in LEARNERS:
        availability.report(name, "memory: too little", is_transient=True)
    availability.check(set())


def test_five_agents_are_named_once_and_the_others_summarised() -> None:
    availability = Availability(LEARNERS, 1)
    names = [*(f"a-{n}" for n in range(3)), "a-0", *(f"a-{n}" for n in range(3, 9))]
    lines = [availability.report(n, "no_data: x", is_transient=n == "a-1") for n in names]
    assert [line for line in lines if line] == [
        "a-0 cannot take part (no_data: x)",
        "a-1 cannot take part (no_data: x); the agent tries again",
        *(f"a-{n} cannot take part (no_data: x)" for n in (2, 3, 4)),
        "more agents cannot take part: see their logs",
    ]
