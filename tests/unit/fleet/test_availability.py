"""When a fleet run ends because its agents cannot take part, and what it says of them."""

import re

import pytest

from fedge.errors import ConfigError
from fleet.availability import Attendance

LEARNERS = [f"a-{n}" for n in range(4)]


def test_a_run_ends_once_too_few_agents_are_left_that_may_take_part() -> None:
    attendance = Attendance(LEARNERS, 2)
    for name in LEARNERS[:2]:
        attendance.cannot(name, "no_data: 1.5 is no whole number", is_transient=False)
    attendance.check(set())
    attendance.cannot("unseen", "no_data: x", is_transient=False)
    attendance.check(set())
    why = "3 of 4 agents cannot take part, a round needs 2; a-0: no_data: 1.5 is no whole number"
    attendance.cannot("a-2", "no_data: x", is_transient=False)
    with pytest.raises(ConfigError, match=re.escape(why)):
        attendance.check(set())


def test_agents_that_have_ended_are_not_counted_on() -> None:
    attendance = Attendance(LEARNERS, 2)
    attendance.check(set(LEARNERS[:3]))  # who ended is another matter
    attendance.cannot("a-0", "no_data: x", is_transient=False)
    with pytest.raises(ConfigError, match="1 of 4 agents"):
        attendance.check(set(LEARNERS[1:3]))


def test_what_may_pass_ends_no_run() -> None:
    attendance = Attendance(LEARNERS, 1)
    for name in LEARNERS:
        attendance.cannot(name, "memory: too little", is_transient=True)
    attendance.check(set())


def test_a_few_agents_are_told_once_and_the_others_as_more() -> None:
    attendance = Attendance(LEARNERS, 1)
    names = [*(f"a-{n}" for n in range(3)), "a-0", *(f"a-{n}" for n in range(3, 9))]
    lines = [attendance.cannot(n, "no_data: x", is_transient=n == "a-1") for n in names]
    assert [line for line in lines if line] == [
        "a-0 cannot take part (no_data: x)",
        "a-1 cannot take part (no_data: x); it tries again",
        *(f"a-{n} cannot take part (no_data: x)" for n in (2, 3, 4)),
        "more agents cannot take part: see their logs",
    ]
