"""Cohorts and the event-exact simulation: the same θ, the same bytes, the same records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker.protocol.messages import name_of
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.registry import ALGORITHMS
from learning.codecs.registry import CODECS
from learning.registry import Registry
from tests.unit.fleet.batched.fleets import (
    cohorts,
    event_exact,
    first_exact_records,
    first_records,
    make_fleet,
)

SGD = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.05}
PROX = {"name": "fedprox", "mu": 0.1, "server": "fedadam"}
#: Scenario and changes: every algorithm, codec and aggregator is in one of them.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "regression": ("house_price", {}),
    "float16": ("house_price", {"federation.codec": "float16"}),
    "adam": ("heart_disease", {"federation.training.optimizer": "adam"}),
    "by agents": ("heart_disease", {"federation.weighting": "agents"}),
    "fedavgm": ("heart_disease", {"federation.algorithm": "fedavgm"}),
    "fedprox": ("heart_disease", {"federation.algorithm": PROX}),
    "fedadagrad": ("heart_disease", {"federation.algorithm": "fedadagrad"}),
    "fedadam": ("heart_disease", {"federation.algorithm": "fedadam"}),
    "fedyogi": ("heart_disease", {"federation.algorithm": "fedyogi"}),
    "scaffold": (
        "heart_disease",
        {"federation.algorithm": "scaffold", "federation.training": SGD},
    ),
    "median": ("heart_disease", {"federation.aggregator": "median"}),
    "trimmed mean": (
        "house_price",
        {"federation.aggregator": "trimmed_mean", "federation.codec": {"name": "int8"}},
    ),
    "half of the agents": (
        "house_price",
        {
            "federation.cohort": {"fraction": 0.5},
            "federation.codec": {"name": "int8", "block_size": 2},
        },
    ),
    "evaluated at times": ("heart_disease", {"federation.evaluation": {"every": 2}}),
    "new people": ("wearable_activity", {}),
    "a few steps": ("machine_wear", {"federation.training.max_steps": 3}),
}

every_case = pytest.mark.parametrize("case", list(CASES))


def changed(case: str, rounds: int) -> tuple[str, dict[str, Any]]:
    name, changes = CASES[case]
    return name, {"federation.rounds": rounds, **changes}


@every_case
def test_with_the_device_s_own_code_everything_is_equal_to_the_last_bit(case: str) -> None:
    name, changes = changed(case, rounds=3)
    found = cohorts(make_fleet(name, changes, "bytes", vectorized=False))
    expected = event_exact(name, changes)
    np.testing.assert_array_equal(found.theta, expected.theta)
    assert found.traffic() == expected.traffic()
    for one, other in zip(found.timeless(), expected.timeless(), strict=True):
        assert (one.status, one.asked, one.reported) == (other.status, other.asked, other.reported)
        assert one.loss == pytest.approx(other.loss, rel=1e-9)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-9)
        assert {n: a.num_examples for n, a in one.agents.items()} == {
            n: a.num_examples for n, a in other.agents.items()
        }


@every_case
def test_in_one_call_a_cohort_s_update_is_equal_within_rounding(case: str) -> None:
    name, changes = changed(case, rounds=1)
    fleet = make_fleet(name, changes, "bytes", vectorized=True)
    found, expected = cohorts(fleet), event_exact(name, changes)
    moved = np.linalg.norm(expected.theta - fleet.package.initial)
    # A level that rounds the other way moves one number by a level.
    tolerance = 1e-3 if "int8" in str(fleet.config.codec) else 1e-5
    assert np.linalg.norm(found.theta - expected.theta) <= tolerance * moved
    # The digits of a loss in an update's header differ, not the update's.
    for one, other in zip(found.traffic(), expected.traffic(), strict=True):
        assert one == pytest.approx(other, abs=12 * len(fleet.participants.rows))


@pytest.mark.parametrize("case", ["regression", "adam", "fedprox", "median"])
def test_after_twenty_rounds_float32_is_still_equal_to_a_millionth(case: str) -> None:
    name, changes = changed(case, rounds=20)
    changes["federation.codec"] = "float32"
    fleet = make_fleet(name, changes, "bytes", vectorized=True)
    found, expected = cohorts(fleet), event_exact(name, changes)
    moved = np.linalg.norm(expected.theta - fleet.package.initial)
    assert np.linalg.norm(found.theta - expected.theta) <= 2e-6 * moved


def test_arrays_learn_as_well_as_bytes_and_count_as_many() -> None:
    changes = {"federation.rounds": 12}
    found = cohorts(make_fleet("heart_disease", changes, "arrays", vectorized=True))
    expected = cohorts(make_fleet("heart_disease", changes, "bytes", vectorized=True))
    for one, other in zip(found.records, expected.records, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.1)
        assert one.bytes_up == pytest.approx(other.bytes_up, rel=0.01)
        assert one.bytes_down == pytest.approx(other.bytes_down, rel=0.01)


def named(key: str, default: str) -> set[str]:
    """Returns the members of a registry that the cases name."""
    given = (changes.get(f"federation.{key}", default) for _, changes in CASES.values())
    return {name_of(choice) for choice in given}


def test_every_algorithm_codec_and_aggregator_is_in_a_case() -> None:
    def shipped(registry: Registry[Any]) -> set[str]:
        return {name for name in registry if registry[name].__module__.startswith("learning.")}

    assert named("algorithm", "fedavg") == shipped(ALGORITHMS)
    assert named("aggregator", "mean") == shipped(AGGREGATORS)
    assert named("codec", "float32") == shipped(CODECS)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation.max_update_norm": 1e-4, "federation.round.minimum": 1},
        {"federation.training.learning_rate": 900.0, "federation.round.minimum": 1},
        {"federation.norm_bound": {"clip": 1.0, "refuse": 1.1}},
        # Of two vectors: the second of an update whose first is refused says nothing.
        {
            "federation.norm_bound": {"clip": 1.0, "refuse": 1.1},
            "federation.algorithm": "scaffold",
            "federation.training": SGD,
        },
        # Agents come into quarantine, and out of it.
        {
            "federation.rounds": 8,
            "federation.norm_bound": {"clip": 1.0, "refuse": 1.1},
            "federation.quarantine": {"after": 1, "rounds": 2},
            "federation.algorithm": "scaffold",
            "federation.training": SGD,
        },
        # θ, and so its blob, stays the same from version to version.
        {
            "federation.training": {**SGD, "learning_rate": 1e-30},
            "federation.codec": "float16",
        },
    ],
)
def test_refused_and_shortened_updates_stand_in_the_record(changes: dict[str, Any]) -> None:
    """Whether rounds are abandoned or not: the first ones are compared."""
    changes = {"federation.rounds": 3, **changes}
    fleet = make_fleet("house_price", changes, "bytes", vectorized=False)
    records = first_records(fleet)
    assert records
    expected = first_exact_records("house_price", changes, len(records))
    for one, other in zip(records, expected, strict=True):
        assert (one.status, one.refusals, one.refused) == (
            other.status,
            other.refusals,
            other.refused,
        )
        assert one.clipped == pytest.approx(other.clipped)
        assert one.declined == other.declined
        assert (one.bytes_up, one.bytes_down) == (other.bytes_up, other.bytes_down)
        assert one.norms.keys() == other.norms.keys()
        for name, norms in one.norms.items():
            assert norms.count == other.norms[name].count
            assert norms.median == pytest.approx(other.norms[name].median)
        assert one.agents.keys() == other.agents.keys()
