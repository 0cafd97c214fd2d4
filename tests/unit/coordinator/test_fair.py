"""Measurements that can be believed."""

from __future__ import annotations

from coordinator.records.fair import without_absurd
from learning.vector.metrics import Sums


def absurd(*losses: float, usual: float | None = None) -> dict[str, str]:
    sums = {name: Sums(2 * loss, 2.0, {}) for name, loss in zip("abcde", losses, strict=False)}
    kept, left_out = without_absurd(sums, usual)
    assert kept == {name: each for name, each in sums.items() if name not in left_out}
    return left_out


def test_a_loss_of_more_than_a_hundred_medians_is_left_out_by_name() -> None:
    assert absurd(1.0, 1.0, 101.0) == {"c": "loss 101, more than 100 times the usual 1"}
    assert absurd(1.0, 1.0, 99.0) == {}


def test_a_loss_below_that_of_the_first_round_is_never_absurd() -> None:
    assert absurd(0.01, 0.01, 5.0, usual=5.0) == {}
    assert list(absurd(0.01, 0.01, 5.1, usual=5.0)) == ["c"]


def test_a_large_first_loss_does_not_excuse_a_hundred_times_as_much() -> None:
    assert list(absurd(2.5, 2.5, 2.5, 430.0, usual=4.4)) == ["d"]


def test_a_loss_may_be_absurd_below_zero() -> None:
    assert list(absurd(-1.0, -2.0, 1.0, -1e97)) == ["d"]


def test_beside_losses_of_zero_the_first_loss_tells_what_is_usual() -> None:
    assert absurd(0.0, 0.0, 5.0) == {}
    assert absurd(0.0, 0.0, 399.0, usual=4.0) == {}
    assert list(absurd(0.0, 0.0, 401.0, usual=4.0)) == ["c"]


def test_of_two_nobody_knows_which_is_wrong() -> None:
    assert absurd(1.0, 1e90, usual=1.0) == {}
