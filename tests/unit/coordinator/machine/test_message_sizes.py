"""Chunks are cut to what the coordinator's connection and those of its agents take."""

from __future__ import annotations

import pytest

from broker.protocol import messages
from broker.protocol.blobs import HEADER_BYTES
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic
from broker.service.events import Connected, MessageArrived, Publish
from coordinator.machine.events import Action
from models.zoo import load_zoo
from tests.unit.coordinator.machine.coordinator_stage import (
    MAX_PAYLOAD,
    FakeAgent,
    Stage,
    config,
    only,
)

DIGITS = load_zoo("handwritten_digit")


@pytest.fixture
def stage() -> Stage:
    """A coordinator with a round open: weights of 797 KB are out."""
    stage = Stage(config(model="handwritten_digit"), package=DIGITS)
    FakeAgent(stage, "pi-0")
    assert stage.plan.weights.chunks == 7
    return stage


def born(stage: Stage, name: str, max_payload_bytes: int) -> list[Action]:
    status = AgentStatus(
        state="online", agent_instance="b1", max_payload_bytes=max_payload_bytes, software=name
    )
    topic = stage.topics.name(AgentStatusTopic(name))
    return stage.feed(MessageArrived(topic, messages.encode(status)))


def largest(actions: list[Action]) -> int:
    return max((len(a.payload) for a in only(actions, Publish)), default=0)


def test_an_agent_that_takes_less_has_everything_published_anew_in_smaller_chunks(
    stage: Stage,
) -> None:
    actions = born(stage, "small", 20_000)
    assert largest(actions) == 16_384
    assert stage.plan.weights.chunks == -(-stage.plan.weights.size // (16_384 - HEADER_BYTES))
    assert stage.blob("weights").size == DIGITS.spec.size


def test_an_agent_that_takes_any_size_changes_nothing(stage: Stage) -> None:
    assert largest(born(stage, "usual", 0)) == 0
    assert largest(born(stage, "large", 1 << 20)) == 0


def test_no_agent_is_given_smaller_chunks_than_16_kib_and_none_has_them_cut_more_than_thrice(
    stage: Stage,
) -> None:
    cuts = [largest(born(stage, f"pi-{size}", size)) for size in range(120_000, 1_000, -1_000)]
    assert [size for size in cuts if size] == [65_536, 32_768, 16_384]


def test_what_agents_take_holds_on_the_next_connection_too(stage: Stage) -> None:
    born(stage, "small", 40_000)
    assert largest(stage.feed(Connected(MAX_PAYLOAD))) == 32_768
    assert largest(stage.feed(Connected(10_000))) <= 10_000
    assert largest(born(stage, "smaller", 20_000)) == 0  # the coordinator's own limit is below
