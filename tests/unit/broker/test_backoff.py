"""Exponential back-off with full jitter."""

from __future__ import annotations

from random import Random

import pytest

from broker.link.backoff import FullJitter


class Highest(Random):
    """Draws the upper end, so that ceilings can be read."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    backoff = FullJitter(0.5, 10.0, Highest())
    assert [backoff.next_s() for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_waits_are_spread_over_the_whole_range() -> None:
    waits = []
    for seed in range(2000):
        backoff = FullJitter(1.0, 60.0, Random(seed))
        backoff.next_s()
        backoff.next_s()
        waits.append(backoff.next_s())  # uniform(0, 4)
    assert 0.0 <= min(waits) < 0.05
    assert 3.95 < max(waits) <= 4.0
    assert sum(waits) / len(waits) == pytest.approx(2.0, abs=0.1)


def test_the_same_generator_gives_the_same_waits() -> None:
    first, second = (FullJitter(0.5, 60.0, Random(7)) for _ in range(2))
    assert [first.next_s() for _ in range(20)] == [second.next_s() for _ in range(20)]


def test_success_starts_from_the_base_again() -> None:
    backoff = FullJitter(0.5, 60.0, Highest())
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.attempt == 0
    assert backoff.next_s() == 0.5


def test_a_hopeless_attempt_waits_at_the_cap() -> None:
    assert FullJitter(0.5, 60.0, Highest()).next_s(at_cap=True) == 60.0


def test_many_failures_do_not_overflow() -> None:
    backoff = FullJitter(0.5, 60.0, Highest())
    backoff.attempt = 100_000
    assert backoff.next_s() == 60.0
