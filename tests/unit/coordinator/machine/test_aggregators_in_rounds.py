"""Aggregators that keep every update, in the coordinator's rounds."""

from __future__ import annotations

import logging

import pytest

from coordinator.config import RoundConfig, StartConfig
from fedge.errors import ConfigError
from learning.aggregation.norm_bound import NormBoundSettings
from tests.unit.coordinator.machine.coordinator_stage import FakeAgent, Stage, config, three


@pytest.mark.parametrize("aggregator", ["median", {"name": "trimmed_mean", "fraction": 0.34}])
def test_one_agent_of_three_cannot_move_theta_beyond_the_others(aggregator: object) -> None:
    stage, a, b, c = three(aggregator=aggregator, norm_bound=NormBoundSettings(clip=0, refuse=0))
    a.update([1, 2, 3])
    b.update([1.5, 2, 3])
    c.update([1e30, -1e30, 3])
    theta = stage.coordinator.progress.theta
    assert 1 <= theta[0] <= 1.5
    assert theta[1:].tolist() == [2.0, 3.0]


def test_an_aggregator_without_room_for_the_smallest_round_is_refused_at_the_start() -> None:
    few = {"name": "median", "max_bytes": 3 * 4 * 2}  # two updates of three parameters
    with pytest.raises(ConfigError, match=r"holds 2 updates of 3 parameters, a round needs 3"):
        Stage(config(aggregator=few, round=RoundConfig(minimum=3)))


def test_a_cohort_is_limited_to_the_updates_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    two = {"name": "median", "max_bytes": 3 * 4 * 2}
    with caplog.at_level(logging.WARNING):
        stage = Stage(config(aggregator=two, start=StartConfig(agents=3)))
        agents = {name: FakeAgent(stage, name) for name in "abc"}
    asked = stage.plan.cohort.ids
    assert asked is not None
    assert len(asked) == 2
    assert "cohort of 3 limited to 2" in caplog.text
    for name in asked:
        agents[name].update([1, 0, 0])
    assert (stage.record.status, stage.record.reported) == ("committed", 2)
