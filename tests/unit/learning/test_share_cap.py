from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.aggregation.share_cap import ShareCap, largest_share


def capped(weights: list[float]) -> list[float]:
    """Returns the weights, in their order, after the cap."""
    cap: ShareCap[int] = ShareCap()
    passed = [p for n, w in enumerate(weights) if (p := cap.add(w, n)) is not None]
    passed += cap.finish()
    assert sorted(each.value for each in passed) == list(range(len(weights)))
    return [each.weight for each in sorted(passed, key=lambda each: each.value)]


@pytest.mark.parametrize(
    "weights",
    [[7.0], [1.0, 1e9], [4.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 1.0, 1.0]],
)
def test_weights_within_their_share_stay_as_they_are(weights: list[float]) -> None:
    assert capped(weights) == weights


def test_one_of_three_has_half_of_the_weight_at_most() -> None:
    assert capped([10.0, 1e9, 20.0]) == pytest.approx([10.0, 30.0, 20.0])


def test_one_of_five_has_a_third_at_most() -> None:
    assert capped([10.0, 10.0, 1e9, 10.0, 10.0]) == pytest.approx([10.0, 10.0, 20.0, 10.0, 10.0])


def test_two_of_five_have_a_third_each() -> None:
    assert capped([1e9, 10.0, 10.0, 10.0, 1e8]) == pytest.approx([30.0, 10.0, 10.0, 10.0, 30.0])


def test_three_of_eight_have_a_quarter_each() -> None:
    found = capped([1e9, 1e8, 1e7, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert found == pytest.approx([50.0, 50.0, 50.0, 10.0, 10.0, 10.0, 10.0, 10.0])


def test_no_share_is_ever_above_its_limit() -> None:
    rng = np.random.default_rng(0)
    for count in range(3, 12):
        for _ in range(200):
            weights = [float(w) for w in 10.0 ** rng.uniform(0, 9, count)]
            found = capped(weights)
            assert max(found) <= largest_share(count) * sum(found) * (1 + 1e-12)
            assert all(a <= b for a, b in zip(found, weights, strict=True))
            cut = [w for w, f in zip(weights, found, strict=True) if f < w]
            assert len(cut) <= 3


def test_equal_weights_go_on_in_their_order() -> None:
    cap: ShareCap[str] = ShareCap()
    passed = [p.value for name in "abcde" if (p := cap.add(1.0, name)) is not None]
    assert passed + [each.value for each in cap.finish()] == list("abcde")


WEIGHTS = st.lists(st.sampled_from([1.0, 2.0, 2.0, 3.0, 50.0]), max_size=12)


@given(WEIGHTS, st.lists(st.integers(0, 12), max_size=3))
def test_cohorts_are_taken_as_one_by_one(weights: list[float], cuts: list[int]) -> None:
    one_by_one: ShareCap[int] = ShareCap()
    gone = [p.value for n, w in enumerate(weights) if (p := one_by_one.add(w, n)) is not None]

    at_once: ShareCap[int] = ShareCap()
    passed = []
    edges = [0, *sorted(min(cut, len(weights)) for cut in cuts), len(weights)]
    for start, end in pairwise(edges):
        numbers = range(start, end)
        before, passes = at_once.add_many(np.array(weights[start:end]), numbers.__getitem__)
        passed += [each.value for each in before]
        passed += (start + np.flatnonzero(passes)).tolist()

    assert sorted(passed) == sorted(gone)
    assert sorted(at_once.finish()) == sorted(one_by_one.finish())


@given(WEIGHTS, st.integers(0, 12))
def test_two_streams_merge_to_one(weights: list[float], cut: int) -> None:
    whole: ShareCap[int] = ShareCap()
    parts: list[ShareCap[int]] = [ShareCap(), ShareCap()]
    passed: list[float] = []
    for n, weight in enumerate(weights):
        whole.add(weight, n)
        if (p := parts[n >= cut].add(weight, n)) is not None:
            passed.append(p.weight)
    passed += [each.weight for each in parts[0].merge(parts[1])]
    held = parts[0].finish()
    assert sorted(each.weight for each in held) == sorted(each.weight for each in whole.finish())
    assert len(passed) + len(held) == len(weights)
