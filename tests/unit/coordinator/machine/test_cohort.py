"""Who is asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from broker.protocol import messages
from coordinator.config import CohortConfig
from coordinator.machine.cohort import draw_cohort

NAMES = tuple(f"pi-{n:03d}" for n in range(100))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("able", "fraction", "at_least", "over_select", "goal", "asked"),
    [
        (10, 1.0, 1, 1.0, 10, 10),
        (10, 0.5, 1, 1.0, 5, 5),
        (10, 0.5, 1, 1.3, 5, 7),  # ceil(6.5)
        (10, 0.01, 1, 1.0, 1, 1),
        (10, 0.01, 4, 1.5, 4, 6),
        (10, 0.9, 1, 2.0, 9, 10),  # no more than there are
        (3, 0.5, 8, 1.0, 3, 3),
        (1, 0.1, 1, 10.0, 1, 1),
    ],
)
def test_how_many_are_asked_and_how_many_are_enough(
    able: int, fraction: float, at_least: int, over_select: float, goal: int, asked: int
) -> None:
    config = CohortConfig(fraction=fraction, at_least=at_least, over_select=over_select)
    draw = draw_cohort(NAMES[:able], config, rng())
    assert (draw.goal, len(draw.asked)) == (goal, asked)
    assert draw.cohort.ids == draw.asked == tuple(sorted(set(draw.asked)))
    assert set(draw.asked) <= set(NAMES[:able])


def test_the_same_state_draws_the_same_cohort_and_another_another() -> None:
    config = CohortConfig(fraction=0.3)
    assert draw_cohort(NAMES, config, rng(1)) == draw_cohort(NAMES, config, rng(1))
    assert draw_cohort(NAMES, config, rng(1)) != draw_cohort(NAMES, config, rng(2))


@pytest.mark.parametrize("announce", ["ids", "rule"])
def test_over_many_rounds_everybody_is_asked_about_as_often(announce: str) -> None:
    config = CohortConfig(fraction=0.2, announce=announce)  # type: ignore[arg-type]
    asked = Counter(
        name for seed in range(500) for name in draw_cohort(NAMES, config, rng(seed)).asked
    )
    # 100 times of 500, standard deviation 9
    assert len(asked) == 100
    assert 60 <= min(asked.values()) <= max(asked.values()) <= 140


def test_a_rule_asks_exactly_those_who_find_themselves_in_it() -> None:
    draw = draw_cohort(NAMES, CohortConfig(fraction=0.3, announce="rule"), rng())
    assert draw.cohort.ids is None
    assert draw.cohort.fraction == pytest.approx(0.3)
    assert draw.asked == tuple(name for name in NAMES if draw.cohort.includes(name))
    assert draw.goal == min(30, len(draw.asked))


def test_a_rule_for_everybody_asks_everybody() -> None:
    draw = draw_cohort(NAMES, CohortConfig(announce="rule"), rng())
    assert draw.asked == NAMES
    assert draw.goal == 100


def test_a_rule_may_draw_nobody() -> None:
    config = CohortConfig(fraction=0.01, announce="rule")
    draws = [draw_cohort(NAMES, config, rng(seed)) for seed in range(50)]
    empty = [draw for draw in draws if not draw.asked]
    assert 8 <= len(empty) <= 30  # e^-1 of 50 is 18
    assert {draw.goal for draw in empty} == {0}


@pytest.mark.parametrize("announce", ["ids", "rule"])
def test_of_nobody_nobody_is_asked(announce: str) -> None:
    config = CohortConfig(announce=announce)  # type: ignore[arg-type]
    draw = draw_cohort((), config, rng())
    assert (draw.asked, draw.goal) == ((), 0)


def test_a_list_for_which_a_plan_has_no_room_is_announced_as_a_rule(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = CohortConfig(fraction=0.5)
    listed = draw_cohort(NAMES, config, rng())
    size = len(messages.encode(listed.cohort))
    assert draw_cohort(NAMES, config, rng(), max_bytes=size) == listed
    assert not caplog.text
    draw = draw_cohort(NAMES, config, rng(), max_bytes=size - 1)
    assert draw.cohort.ids is None
    assert draw.asked == tuple(name for name in NAMES if draw.cohort.includes(name))
    assert f"a list of 50 agents has {size} bytes, a plan has room for {size - 1}" in caplog.text


def test_by_default_up_to_fifty_agents_are_listed_and_more_get_a_rule() -> None:
    few = draw_cohort(NAMES[:50], CohortConfig(), rng())
    assert few.cohort.ids == NAMES[:50]
    many = draw_cohort(NAMES[:51], CohortConfig(), rng())
    assert many.cohort.ids is None
    assert many.asked == NAMES[:51]


def test_a_rule_names_no_more_than_two_hundred_agents_that_are_left_out() -> None:
    invented = tuple(f"x-{n:05d}" for n in range(50_000))
    drawn = draw_cohort(NAMES, CohortConfig(), rng(), left_out=invented)
    assert drawn.cohort.without == invented[:200]
