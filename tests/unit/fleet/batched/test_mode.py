"""Which way a fleet is simulated, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator.config import CohortConfig, CoordinatorConfig
from fedge.errors import ConfigError
from fleet.batched.cohort.agent_data import agent_data
from fleet.batched.mode import choose_kernel_kind, choose_mode
from models.runtime.program import Program
from tests.unit.fleet.batched.fleets import make_fleet


def config(**changes: Any) -> CoordinatorConfig:
    return CoordinatorConfig(federation="f", model="house_price", rounds=10, **changes)


@pytest.mark.parametrize(
    ("agents", "features", "changes", "mode", "why"),
    [
        (10, [], {}, "exact", "10 agents in 10 rounds are few enough"),
        (1_000, [], {}, "bytes", "without faults"),
        (100_000, [], {}, "arrays", "sizes stand for bytes"),
        (100_000, ["--faults"], {}, "exact", "--faults needs every message"),
        (1_000, [], {"task": "statistics"}, "exact", "trains nothing"),
        (1_000, [], {"cohort": CohortConfig(over_select=1.5)}, "exact", "who is late"),
    ],
)
def test_the_first_way_that_does_what_is_asked_is_taken(
    agents: int, features: list[str], changes: dict[str, Any], mode: str, why: str
) -> None:
    choice = choose_mode("auto", config(**changes), agents, features)
    assert choice.mode == mode
    assert why in choice.why


def test_a_wanted_way_that_cannot_do_what_is_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--mode arrays: --trace needs every message; take"):
        choose_mode("arrays", config(), 10, ["--trace"])
    assert choose_mode("exact", config(), 1_000_000, []).mode == "exact"


def kernel(wanted: str, **columns: Any) -> str:
    fleet = make_fleet("house_price", {}, "bytes", vectorized=False)
    package = fleet.package
    program = Program(package.program, package.spec, frozen=package.frozen)
    data = agent_data(fleet.participants)
    data = replace(data, arrays={**data.arrays, **columns})
    return choose_kernel_kind(wanted, package, program, data, fleet.config.training).kind


def test_a_dense_model_runs_for_many_agents_at_a_time_or_for_one() -> None:
    assert kernel("vectorized") == "vectorized"
    assert kernel("single") == "single"
    assert kernel("auto") in ("vectorized", "single")  # what is faster here and now


def test_rows_with_weights_are_trained_on_by_each_agent_itself() -> None:
    weights = np.ones(20_000, np.float32)
    assert kernel("auto", weight=weights) == "single"
    with pytest.raises(
        ConfigError, match=r"--kernel vectorized: weights of rows: .*--kernel single"
    ):
        kernel("vectorized", weight=weights)
