"""When rounds begin, when they end for good, and what a restart goes on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic, RoundTopic
from broker.service.events import MessageArrived
from coordinator.config import CohortConfig, EvaluationConfig, StartConfig, StopConfig
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import (
    AgentUnavailable,
    Commit,
    Finished,
    RoundEnded,
    SaveAgent,
    SaveRound,
    Waiting,
)
from coordinator.machine.progress import Progress, StoredRound
from coordinator.records.course import Best, Course, Rule
from fedge.errors import ConfigError
from learning.aggregation.norm_bound import KnownNorms, Norms
from learning.algorithms.algorithm import ServerState
from learning.algorithms.training import TrainingPlan
from learning.vector.parameters import Layout
from models.package.package import ModelPackage
from tests.unit.coordinator.machine.coordinator_stage import (
    PACKAGE,
    SESSION,
    FakeAgent,
    Stage,
    config,
    only,
    three,
)


def test_it_waits_for_the_wished_number_of_agents_and_says_so_once() -> None:
    stage = Stage(config(start=StartConfig(agents=2)))
    assert only(stage.actions, Waiting) == [Waiting(able=0, wanted=2)]
    FakeAgent(stage, "a")
    stage.later(1.0)
    stage.later(1.0)
    assert only(stage.actions, Waiting) == [Waiting(0, 2), Waiting(1, 2)]
    assert stage.topics.name(RoundTopic()) not in stage.retained
    FakeAgent(stage, "b")
    assert stage.plan.cohort.ids == ("a", "b")


def test_after_the_timeout_fewer_agents_will_do() -> None:
    stage = Stage(config(start=StartConfig(agents=5, timeout_s=30.0)))
    FakeAgent(stage, "a")
    stage.later(29.0)
    assert stage.topics.name(RoundTopic()) not in stage.retained
    stage.later(1.0)
    assert stage.plan.cohort.ids == ("a",)


def test_agents_that_rest_are_not_asked_until_they_say_that_they_do_no_longer() -> None:
    stage = Stage(config(cohort=CohortConfig(at_least=2)))
    a = FakeAgent(stage, "a", join=False)
    a.rest("quiet_hours: 22:00-06:00 local time")
    FakeAgent(stage, "b")
    assert only(stage.actions, Waiting)[-1] == Waiting(able=1, wanted=2, resting=1)
    a.rest("")
    assert stage.plan.cohort.ids == ("a", "b")


def test_an_agent_that_rests_within_a_round_is_not_waited_for() -> None:
    stage, a, b, c = three()
    c.rest("too_hot: 80 °C, limit 75")
    a.update([1, 0, 0])
    assert only(b.update([1, 0, 0]), RoundEnded)
    assert (stage.record.reported, stage.record.closed) == (2, "everyone")
    assert stage.plan.cohort.ids == ("a", "b")


def test_an_agent_that_rested_within_a_round_and_goes_on_still_counts() -> None:
    stage, a, b, c = three()
    c.rest("too_hot: 80 °C, limit 75")
    c.rest("")
    a.update([1, 0, 0])
    assert not only(b.update([1, 0, 0]), RoundEnded)
    assert c.receipt(c.update([1, 0, 0])).accepted
    assert stage.record.reported == 3


def test_agents_that_cannot_train_are_not_asked() -> None:
    stage = Stage(config(start=StartConfig(agents=1)))
    FakeAgent(stage, "empty", rows=0)
    FakeAgent(stage, "eval", phases=["evaluate"])
    sick = AgentStatus(
        state="online",
        agent_instance="b",
        phases=("train",),
        train_examples=5,
        unavailable_reason="sick",
    )
    foreign = msgspec.structs.replace(sick, unavailable_reason="", codecs=("zip",))
    for name, status in (("sick", sick), ("foreign", foreign)):
        topic = stage.topics.name(AgentStatusTopic(name))
        stage.feed(MessageArrived(topic, messages.encode(status)))
    FakeAgent(stage, "a")
    assert stage.plan.cohort.ids == ("a",)
    assert only(stage.actions, AgentUnavailable) == [
        AgentUnavailable("sick", "sick", is_transient=False)
    ]


@pytest.mark.parametrize(
    ("changes", "reason", "versions"),
    [
        ({"rounds": 3}, "rounds", 3),
        ({"stop": StopConfig(target=2.0)}, "target", 2),  # the losses are 4, 2, 1, 1, 1, …
        ({"stop": StopConfig(patience=2)}, "patience", 5),
        ({"stop": StopConfig(metric="mae", target=1.0)}, "target", 3),
    ],
)
def test_it_ends_for_a_reason(changes: Any, reason: str, versions: int) -> None:
    stage = Stage(config(start=StartConfig(agents=1), **changes))
    a = FakeAgent(stage, "a")
    losses = iter([4.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    while stage.coordinator.finished is None:
        loss = next(losses)
        a.update([1, 0, 0], loss=loss, metrics={"mae": loss})
    assert stage.coordinator.finished == reason
    assert stage.coordinator.progress.version == versions
    assert stage.actions[-1] == Finished(reason)
    assert stage.plan.state == "finished"
    assert not stage.plan.cohort.includes("a")
    assert stage.weights().tolist() == [float(versions), 0.0, 0.0]


def test_an_agent_whose_heartbeats_stop_is_stored_as_offline() -> None:
    stage = Stage(config())
    status = AgentStatus(state="online", agent_instance="b1", heartbeat_s=10.0)
    topic = stage.topics.name(AgentStatusTopic("a"))
    stage.feed(MessageArrived(topic, messages.encode(status)))
    for _ in range(3):
        assert only(stage.later(10.0), SaveAgent) == []
    offline = msgspec.structs.replace(status, state="offline")
    assert only(stage.later(1.0), SaveAgent) == [SaveAgent("a", offline)]


def test_what_single_agents_did_in_a_round_is_told_and_not_kept_in_memory() -> None:
    stage, a, b, c = three()
    a.report("declined", reason="too_hot")
    b.update([1, 0, 0])
    c.update([1, 0, 0])
    assert (set(stage.record.agents), stage.record.declined) == ({"b", "c"}, {"a": "too_hot"})
    assert only(stage.actions, SaveRound)[-1].record == stage.record
    assert stage.coordinator.progress.course == Course(
        Rule(while_training=True),
        last_round=1,
        committed=1,
        value=1.0,
        best=Best(1, 0, 1.0, measured=2),
        first_loss=1.0,
        first_measured=2,
        norms={"delta": KnownNorms((Norms(median=1.0, count=2),))},
    )
    assert stage.record.summary.agents == {}


def test_a_restart_goes_on_with_the_next_round_and_the_same_model() -> None:
    stage, *agents = three()
    for agent in agents:
        agent.update([1, 0, 0])
    for agent in agents:
        agent.update([1, 0, 0])
    assert stage.plan.round_id == 3
    kept = stage.coordinator.progress
    again = Stage(
        config(),
        session="s2",
        progress=Progress(kept.version, kept.theta, ServerState(), kept.course),
    )
    a = FakeAgent(again, "a")
    again.later(1.0)  # births of the others would have arrived by now
    assert (again.plan.session, again.plan.round_id, again.plan.version) == ("s2", 3, 2)
    assert again.weights().tolist() == [2.0, 0.0, 0.0]
    a.update([1, 0, 0])
    assert (again.record.round_id, again.record.version) == (3, 3)


def test_after_a_restart_a_round_ends_only_when_births_had_time_to_arrive() -> None:
    settings = config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1))
    stage = Stage(settings)
    a, _ = (FakeAgent(stage, name, test_rows=2) for name in "ab")
    frames = (("a", a.frame([2, 0, 0])),)
    stored = StoredRound(stage.plan, ("a", "b"), 2, frames)
    again = Stage(settings, progress=Progress(0, PACKAGE.initial, ServerState(), Course(), stored))
    b = FakeAgent(again, "b", test_rows=2, join=False)
    # It was queued while nobody was there, and so comes before what is retained.
    assert b.receipt(b.update([4, 0, 0])).accepted
    assert only(again.actions, Commit) == []
    b.status("online")
    FakeAgent(again, "a", test_rows=2)
    again.later(again.coordinator.wait_s(again.now_s))
    assert again.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]
    assert (again.plan.phase, again.plan.cohort.ids) == ("evaluate", ("a", "b"))


def test_an_agent_lost_while_the_coordinator_was_away_is_not_waited_for() -> None:
    settings = config(start=StartConfig(agents=2))
    stage = Stage(settings)
    a, _ = FakeAgent(stage, "a"), FakeAgent(stage, "b")
    stored = StoredRound(stage.plan, ("a", "b"), 2, (("a", a.frame([2, 0, 0])),))
    again = Stage(settings, progress=Progress(0, PACKAGE.initial, ServerState(), Course(), stored))
    FakeAgent(again, "b", join=False).status("offline")  # its will, retained
    FakeAgent(again, "a")
    again.later(again.coordinator.wait_s(again.now_s))
    assert (again.record.closed, again.record.reported) == ("everyone", 1)
    assert again.plan.cohort.ids == ("a",)


def test_a_restart_with_another_algorithm_is_told_at_once() -> None:
    progress = Progress(1, PACKAGE.initial, ServerState({"velocity": np.zeros(3, np.float32)}))
    with pytest.raises(ConfigError, match="the algorithm or the model was changed"):
        Coordinator(config(), PACKAGE, SESSION, "c1", progress)
    Coordinator(config(algorithm="fedavgm"), PACKAGE, SESSION, "c1", progress)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "fedmagic"},
        {"codec": "zip"},
        {"aggregator": "mode"},
    ],
)
def test_unknown_names_are_told_at_once(changes: Any) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        Coordinator(config(**changes), PACKAGE, SESSION, "c1")


def with_batch_normalization(package: ModelPackage, batch_size: int) -> ModelPackage:
    """Returns the package as if its last parameter followed the data."""
    *others, last = package.spec.layout.parameters
    layout = Layout((*others, msgspec.structs.replace(last, tracked=True)))
    spec = msgspec.structs.replace(package.spec, layout=layout, batch_size=batch_size)
    return replace(package, spec=spec)


def test_steps_of_more_rows_than_batch_normalization_sees_are_told_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = with_batch_normalization(PACKAGE, 32)

    def start(batch_size: int, **changes: Any) -> None:
        training = TrainingPlan(batch_size=batch_size)
        Coordinator(config(training=training, **changes), package, SESSION, "c1")

    start(32)
    assert not caplog.records
    for rows in (33, 64):
        says = f"^training.batch_size: .* 32 rows at most, and a step of {rows} rows takes several"
        with pytest.raises(ConfigError, match=says):
            start(rows)
        start(rows, task="statistics")  # no steps
    start(0)
    assert "agents that learn from more than 32 rows decline" in caplog.text
