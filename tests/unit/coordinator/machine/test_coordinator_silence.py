"""When agents count as lost, and when it is the coordinator that could not hear them."""

from __future__ import annotations

from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic
from broker.service.events import Connected, Disconnected
from coordinator.config import RoundConfig, StartConfig
from coordinator.machine.events import RoundEnded
from tests.unit.coordinator.machine.coordinator_stage import (
    MAX_PAYLOAD,
    FakeAgent,
    Stage,
    config,
    only,
)

HEARTBEAT_S = 60.0


def beat(agent: FakeAgent) -> None:
    status = AgentStatus(
        state="online",
        agent_instance=agent.agent_instance,
        phases=("train",),
        train_examples=10,
        codecs=("float32",),
        algorithms=("fedavg",),
        heartbeat_s=HEARTBEAT_S,
        coordinator_instance=agent.stage.start,
    )
    agent.say(AgentStatusTopic(agent.name), messages.encode(status))


def collecting() -> tuple[Stage, list[FakeAgent]]:
    """A round that has one answer, which would be enough, and waits for two more."""
    settings = config(
        start=StartConfig(agents=3), round=RoundConfig(minimum=1, deadline_s=100_000.0)
    )
    stage = Stage(settings)
    agents = [FakeAgent(stage, name, join=False) for name in "abc"]
    for agent in agents:
        beat(agent)
    assert stage.plan.cohort.ids == ("a", "b", "c")
    agents[0].update([1, 0, 0])
    return stage, agents


def wait(stage: Stage, seconds: float) -> None:
    """With the ticks that the machine asks for."""
    end_s = stage.now_s + seconds
    while stage.now_s < end_s:
        stage.later(min(10.0, end_s - stage.now_s))


def ended(stage: Stage) -> bool:
    return bool(only(stage.actions, RoundEnded))


def test_agents_that_are_silent_for_three_heartbeats_are_not_waited_for() -> None:
    stage, _ = collecting()
    wait(stage, 3 * HEARTBEAT_S)
    assert not ended(stage)
    wait(stage, 1.0)
    assert stage.record.reported == 1
    assert stage.record.closed == "everyone"


def test_an_outage_of_the_broker_makes_nobody_lost() -> None:
    stage, agents = collecting()
    stage.feed(Disconnected())
    wait(stage, 10 * HEARTBEAT_S)
    assert not ended(stage)
    stage.feed(Connected(MAX_PAYLOAD))
    wait(stage, 3 * HEARTBEAT_S)
    assert not ended(stage), "they may need so long to come back"
    for agent in agents:
        agent.update([1, 0, 0])
    assert stage.record.reported == 3


def test_those_who_do_not_come_back_after_an_outage_are_lost_then() -> None:
    stage, _ = collecting()
    stage.feed(Disconnected())
    wait(stage, 10 * HEARTBEAT_S)
    stage.feed(Connected(MAX_PAYLOAD))
    wait(stage, 3 * HEARTBEAT_S + 10.0)
    assert stage.record.reported == 1


def test_heartbeats_that_waited_while_the_process_stood_still_count() -> None:
    stage, agents = collecting()
    stage.later(10 * HEARTBEAT_S)  # its disk hung; the tick comes before what is queued
    assert not ended(stage)
    for agent in agents:
        beat(agent)
    wait(stage, 2 * HEARTBEAT_S)
    assert not ended(stage)


def test_no_round_begins_while_the_link_is_down() -> None:
    stage, _ = collecting()
    stage.feed(Disconnected())
    stage.later(100_000.0)
    assert ended(stage)
    before = stage.plan.round_id
    wait(stage, 100.0)
    assert stage.plan.round_id == before
    stage.feed(Connected(MAX_PAYLOAD))
    assert stage.plan.round_id == before + 1
