"""Cohorts beside single agents: the same federation, with fewer processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.batched.mixed import mixed, mixed_trial
from fleet.virtual.faults import Crash, FaultPlan, Partition, confined, without_faults
from fleet.virtual.simulate import SimulationOptions, make_setting
from fleet.virtual.simulation import Setting, Simulation
from fleet.virtual.sweep import sweep
from tests.unit.fleet.batched.fleets import EXAMPLES

NAMES = ["pi-1", "pi-2", "pi-3"]


def setting(name: str, changes: dict[str, Any], faults: FaultPlan) -> Setting:
    options = SimulationOptions(Path(), changes)
    made = make_setting(EXAMPLES / f"{name}.yaml", options)[2]
    return replace(made, faults=faults, start_hour=23.0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("house_price", {"agents": 9}),
        ("heart_disease", {"federation.algorithm": "scaffold", "federation.training.momentum": 0}),
    ],
)
def test_a_federation_of_cohorts_and_agents_learns_what_one_of_agents_learns(
    name: str, changes: dict[str, Any]
) -> None:
    changes = {"federation.rounds": 4, **changes}
    single = setting(name, changes, FaultPlan())
    first = single.devices[0].agent_id
    crash = FaultPlan(crashes=(Crash(who=(first,), at_s=1e8),))  # never, but it may
    both = mixed(replace(single, faults=crash), any_profile=True)
    assert [device.agent_id for device in both.devices] == [first]
    assert len(both.cohorts) == 1

    one, other = Simulation(single), Simulation(both)
    one.run()
    other.run(limit_s=1e6)
    found, expected = (s.coordinator.coordinator.progress.theta for s in (other, one))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    for record, same in zip(
        other.coordinator.store.rounds(), one.coordinator.store.rounds(), strict=True
    ):
        assert (record.reported, record.bytes_up) == (same.reported, same.bytes_up)
        assert record.bytes_down == same.bytes_down


def test_agents_to_which_nothing_happens_are_told_from_the_others() -> None:
    crash = Crash(who=("pi-2",), at_s=3)
    assert without_faults(FaultPlan(crashes=(crash,)), NAMES) == ["pi-1", "pi-3"]
    assert without_faults(FaultPlan(), NAMES) == NAMES
    assert without_faults(FaultPlan(drop=0.1), NAMES) == []
    of_all = Partition(who=("coordinator",), from_s=1, to_s=2)
    assert without_faults(FaultPlan(partitions=(of_all,)), NAMES) == []


def test_a_plan_is_confined_to_some_agents() -> None:
    plan = FaultPlan(
        drop=0.2,
        until_s=50,
        crashes=(Crash(who=("coordinator",), at_s=1), Crash(who=("pi-*",), at_s=2)),
        partitions=(Partition(who=("agent:*",), from_s=3, to_s=4),),
    )
    found = confined(plan, ["pi-1", "pi-3"])
    assert (found.drop, found.until_s) == (0.0, 50)
    assert found.crashes == (Crash(who=("pi-1", "pi-3"), at_s=2),)
    assert found.partitions[0].who == ("pi-1", "pi-3")
    assert without_faults(found, NAMES) == ["pi-2"]


def test_the_invariants_hold_for_cohorts_and_faulty_agents_together() -> None:
    tried = list(sweep(range(300, 312), 1, change=mixed_trial))
    assert [outcome.problem for outcome in tried] == [""] * 12
    assert sum(outcome.checks for outcome in tried) > 1000
