from __future__ import annotations

import math

import numpy as np
import pytest

from fedge.errors import UpdateRejected
from learning.aggregation.norm_bound import (
    NormBoundSettings,
    NormHistory,
    Norms,
    RoundNorms,
    vector_norm,
)
from learning.algorithms.algorithm import Upload
from learning.vector.parameters import F32

DELTA = Upload()
THETA = np.zeros(2, np.float32)


def of_norm(norm: float) -> F32:
    return np.array([0.6 * norm, 0.8 * norm], np.float32)


def history(*medians: float, count: int = 4, **settings: float) -> NormHistory:
    found = NormHistory(NormBoundSettings(**settings))  # type: ignore[arg-type]
    for median in medians:
        found.add({"delta": Norms(median, count)})
    return found


def refusal(norms: RoundNorms, vector: F32, upload: Upload = DELTA) -> str:
    with pytest.raises(UpdateRejected) as caught:
        norms.admit("pi-1", "delta", vector, upload)
    assert caught.value.reason == "norm"
    return caught.value.detail


def test_an_update_of_the_usual_norm_passes_as_it_is() -> None:
    vector = of_norm(1.9)
    assert history(1.0).open_round(THETA).admit("pi-1", "delta", vector, DELTA) is vector


def test_an_update_beyond_twice_the_usual_is_shortened_to_it() -> None:
    norms = history(1.0).open_round(THETA)
    found = norms.admit("pi-1", "delta", of_norm(6.0), DELTA)
    np.testing.assert_allclose(found, of_norm(2.0), rtol=1e-6)
    assert norms.clipped == {"pi-1": pytest.approx(1 / 3)}


def test_an_update_beyond_ten_times_the_usual_is_refused_with_value_and_limit() -> None:
    assert refusal(history(1.0).open_round(THETA), of_norm(11.0)) == (
        "L2 norm of delta 11, limit 10: 10 times the usual norm (norm_bound.refuse)"
    )


def test_a_vector_that_must_be_exact_is_refused_rather_than_shortened() -> None:
    norms = history(1.0).open_round(THETA)
    exact, vector = Upload(exact=True), of_norm(6.0)
    assert norms.admit("pi-1", "delta", vector, exact) is vector
    refusal(norms, of_norm(11.0), exact)


def test_without_a_history_only_an_explosion_is_refused() -> None:
    norms = history().open_round(THETA)  # 1e4 * (0 + sqrt 2)
    norms.admit("pi-1", "delta", of_norm(14_000.0), DELTA)
    assert "limit 14142.1: θ would explode" in refusal(norms, of_norm(14_200.0))


def test_the_operators_limit_holds_whatever_is_usual() -> None:
    norms = history(100.0).open_round(THETA, max_norm=5.0)
    assert refusal(norms, of_norm(6.0)) == "L2 norm of delta 6, limit 5: max_update_norm"
    norms.admit("pi-1", "control", of_norm(9.0), Upload(norm_factor=2.0))


def test_a_delta_that_an_agent_clipped_to_the_limit_passes() -> None:
    delta = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    delta *= np.float32(1.0) / np.linalg.norm(delta)
    history().open_round(delta, 1.0).admit("pi-1", "delta", delta, DELTA)
    refusal(history().open_round(delta, 0.9999), delta)


def test_switched_off_nothing_is_refused_or_shortened() -> None:
    norms = history(1.0, clip=0, refuse=0).open_round(THETA)
    vector = of_norm(1e30)
    assert norms.admit("pi-1", "delta", vector, DELTA) is vector
    assert norms.suspects() == {}


def test_squares_beyond_float32_do_not_hide_the_norm() -> None:
    assert vector_norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30)


def test_a_signalling_nan_has_no_norm_and_gives_no_warning() -> None:
    assert math.isnan(vector_norm(np.array([0x7F81_0000, 0], np.uint32).view(np.float32)))


def test_a_minority_of_long_updates_does_not_move_the_scale() -> None:
    norms = history().open_round(THETA)
    for n in range(7):
        norms.admit(f"pi-{n}", "delta", of_norm(1.0), DELTA)
    for n in range(7, 10):
        norms.admit(f"pi-{n}", "delta", of_norm(1000.0), DELTA)
    assert norms.norms() == {"delta": Norms(1.0, 10)}
    assert sorted(norms.suspects()) == ["pi-7", "pi-8", "pi-9"]
    assert norms.suspects()["pi-7"] == "L2 norm of delta 1000, 1e+03 times the median"


def test_two_updates_tell_nobody_which_of_them_is_wrong() -> None:
    norms = history().open_round(THETA)
    norms.admit("pi-1", "delta", of_norm(1.0), DELTA)
    norms.admit("pi-2", "delta", of_norm(1000.0), DELTA)
    assert norms.suspects() == {}


def test_refused_norms_are_noted_too() -> None:
    norms = history(1.0).open_round(THETA)
    refusal(norms, of_norm(50.0))
    assert norms.norms() == {"delta": Norms(50.0, 1)}


def test_the_scale_falls_with_the_norms_but_not_below_a_quarter_of_the_largest() -> None:
    falling = history(8.0, 4.0, 4.0, 3.0, 3.0, 3.0)
    assert falling.scale("delta") == 3.0
    for _ in range(5):
        falling.add({"delta": Norms(0.1, 4)})
    assert falling.scale("delta") == pytest.approx(0.25 * 8.0 * 0.98**10)


def test_a_round_in_which_most_are_beyond_the_bound_begins_the_history_anew() -> None:
    changed = history(1.0, 1.0, 1.0)
    changed.add({"delta": Norms(20.0, 4)})
    assert changed.scale("delta") == 20.0


@pytest.mark.parametrize("count", [1, 2])
def test_rounds_of_one_or_two_agents_say_nothing(count: int) -> None:
    assert history(*[1e-9] * 20, count=count).scale("delta") == 0.0


def test_an_update_that_would_make_theta_explode_says_nothing_of_what_is_usual() -> None:
    norms = history().open_round(THETA)
    for name in ("pi-1", "pi-2"):
        with pytest.raises(UpdateRejected):
            norms.admit(name, "delta", of_norm(1e30), DELTA)
    norms.admit("pi-3", "delta", of_norm(1.0), DELTA)
    assert norms.norms() == {"delta": Norms(1.0, 1)}


def test_the_length_of_an_update_is_that_with_which_it_counts() -> None:
    norms = history(2.0).open_round(THETA)
    norms.admit("pi-1", "delta", of_norm(3.0), DELTA)
    norms.admit("pi-2", "delta", of_norm(9.0), DELTA)
    lengths = [norms.length(name) for name in ("pi-1", "pi-2", "pi-3")]
    assert lengths == pytest.approx([1.5, 2.0, 1.0])


def test_a_fleet_that_learns_nothing_yet_bounds_nobody() -> None:
    norms = history(0.0, 0.0).open_round(THETA)
    vector = of_norm(5.0)
    assert norms.admit("pi-1", "delta", vector, DELTA) is vector


def test_clip_above_refuse_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="clip 5 is above refuse 4"):
        NormBoundSettings(clip=5.0, refuse=4.0)


def test_a_history_goes_on_after_a_restart_with_what_it_knew() -> None:
    before = history(8.0, *[0.1] * 6, rounds=5)
    again = NormHistory(before.settings, before.known)
    assert again.scale("delta") == before.scale("delta") == pytest.approx(0.25 * 8.0 * 0.98**6)
    for each in (before, again):
        each.add({"delta": Norms(0.2, 4)})
    assert again.known == before.known
