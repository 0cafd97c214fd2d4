"""Between two steps: sleeping, waiting, and being told that it is over."""

from __future__ import annotations

import pytest

from edge_agent.training.throttle import Throttle


class Clock:
    """Time that passes in steps and in sleeps only."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s = 0.0
        self.sleeps = 0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds
        self.sleeps += 1


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("step_s", [50e-6, 0.004, 2.0])
def test_it_computes_the_share_of_the_time_that_it_may(share: float, step_s: float) -> None:
    clock = Clock()
    throttle = Throttle(share, lambda: False, clock=clock, sleep=clock.sleep)
    while clock.now_s < 60:
        assert not throttle.wait_and_check_cancelled()
        clock.now_s += step_s
    assert 1 - clock.slept_s / clock.now_s == pytest.approx(share, abs=0.05)


def test_many_short_steps_share_one_sleep() -> None:
    clock = Clock()
    throttle = Throttle(0.5, lambda: False, clock=clock, sleep=clock.sleep)
    for _ in range(1000):
        throttle.wait_and_check_cancelled()
        clock.now_s += 50e-6
    assert 1 <= clock.sleeps <= 6


def test_with_the_whole_share_it_never_sleeps() -> None:
    clock = Clock()
    throttle = Throttle(1.0, lambda: False, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        assert not throttle.wait_and_check_cancelled()
        clock.now_s += 1.0
    assert clock.sleeps == 0


def test_while_it_is_paused_it_waits_and_then_goes_on() -> None:
    clock = Clock()
    throttle = Throttle(
        1.0, lambda: False, paused=lambda: clock.now_s < 5.0, clock=clock, sleep=clock.sleep
    )
    assert not throttle.wait_and_check_cancelled()
    assert 5.0 <= clock.now_s < 5.5


def test_a_pause_is_not_made_up_for() -> None:
    clock = Clock()
    throttle = Throttle(
        0.5, lambda: False, paused=lambda: clock.now_s < 5.0, clock=clock, sleep=clock.sleep
    )
    throttle.wait_and_check_cancelled()
    slept_s = clock.slept_s
    throttle.wait_and_check_cancelled()
    assert clock.slept_s == slept_s


@pytest.mark.parametrize("paused", [True, False])
def test_the_end_is_noticed_within_a_sleep(paused: bool) -> None:
    clock = Clock()
    throttle = Throttle(0.01, lambda: clock.now_s >= 11.0, lambda: paused, clock, clock.sleep)
    clock.now_s += 10.0  # a step that would be slept for 1,000 s
    assert throttle.wait_and_check_cancelled()
    assert clock.now_s < 11.5
