"""Device state: which model, session and algorithm it belongs to, and how residuals are rounded."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.machine.device_state import (
    DeviceState,
    model_key,
    rounded,
    rounded_residuals,
)
from learning.vector.parameters import F32, Layout, ParameterSpec
from models.zoo import load_zoo

ONE = np.ones(3, np.float32)


def state() -> DeviceState:
    return DeviceState("m", "s", {"delta": rounded(ONE)}, "scaffold", {"control": ONE * 2}, ONE * 3)


def test_all_of_it_is_usable_where_it_came_from() -> None:
    of = state()
    assert of.usable_for("m", "s", "scaffold") is of


def test_another_algorithm_keeps_residual_and_personal_layers() -> None:
    other = state().usable_for("m", "s", "fedavg")
    assert (list(other.residuals), list(other.vectors)) == (["delta"], [])
    assert other.personal is not None


def test_another_run_of_the_coordinator_keeps_personal_layers_only() -> None:
    other = state().usable_for("m", "t", "scaffold")
    assert (list(other.residuals), list(other.vectors)) == ([], [])
    assert other.personal is not None
    assert other.session == "t"


def test_another_model_keeps_nothing() -> None:
    other = state().usable_for("n", "s", "scaffold")
    assert (other.residuals, other.vectors, other.personal) == ({}, {}, None)
    assert other.model == "n"


def test_nobody_can_change_it() -> None:
    with pytest.raises(ValueError, match="read-only"):
        state().vectors["control"][0] = 1


def test_another_package_of_the_layouts_has_the_same_key_and_another_layout_does_not() -> None:
    spec = load_zoo("house_price").spec
    narrow, wide = (Layout((ParameterSpec("head/kernel", (size,)),)) for size in (2, 3))
    own = replace(spec, personal=narrow)
    key = model_key(own)
    assert key == model_key(replace(own, source="exported again"))
    others = [spec, replace(own, personal=wide), replace(own, layout=wide)]
    assert key not in map(model_key, others)
    assert model_key(spec) == spec.layout.fingerprint


def residuals() -> list[F32]:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(1000) * 10.0 ** rng.uniform(-12, 0, 1000)
    found = [spread * scale for scale in (1e-25, 1e-6, 1.0, 1e30)]
    return [vector.astype(np.float32) for vector in [*found, np.array([3.4e38, -1e-45, 0.0])]]


@pytest.mark.parametrize("residual", residuals(), ids=lambda r: f"{np.abs(r).max():.0e}")
def test_a_rounded_residual_is_near_and_rounding_it_again_changes_no_bit(residual: F32) -> None:
    once = rounded(residual)
    x, peak = np.abs(residual.astype(np.float64)), float(np.abs(residual).max())
    error = np.abs(once.vector.astype(np.float64) - residual)
    assert (error <= x / 2048 + peak * 3e-8).all()
    twice = rounded(once.vector)
    assert (twice.scale, twice.halves.tobytes()) == (once.scale, once.halves.tobytes())


def test_a_kept_residual_takes_two_bytes_a_parameter() -> None:
    kept = rounded(np.ones(1000, np.float32))
    assert (kept.size, kept.halves.nbytes) == (1000, 2000)
    assert kept.vector.dtype == np.float32


def test_a_residual_of_zeros_or_nearly_is_left_out() -> None:
    tiny = np.full(3, 1e-31, np.float32)
    kept = rounded_residuals({"a": ONE, "b": ONE * 0, "c": tiny, "d": np.zeros(0, np.float32)})
    assert list(kept) == ["a"]
