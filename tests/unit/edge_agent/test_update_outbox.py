"""The pending update and the device's state: each belongs to one model."""

from __future__ import annotations

from random import Random

import numpy as np

from broker.protocol.messages import Receipt
from broker.protocol.topics import Topics
from edge_agent.machine.device_state import DeviceState, rounded
from edge_agent.machine.events import ForgetState, ResolvePendingUpdate, SpoolUpdate
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from edge_agent.machine.update_outbox import Outbox

A, B = "a" * 16, "b" * 16


def state(model: str, value: float = 1.0) -> DeviceState:
    return DeviceState(model, "s1", {"delta": rounded(np.full(4, value, np.float32))})


def pending(state: DeviceState, round_id: int = 3) -> SpooledUpdate:
    return SpooledUpdate("s1", round_id, "train", "b1", 1, 2, 60.0, b"frame", state)


def booted(memory: AgentMemory) -> Outbox:
    return Outbox(Topics("f"), "pi-1", memory, Random(1))


def refused() -> Receipt:
    return Receipt(
        session="s1", round_id=3, agent_instance="b1", attempt=1, accepted=False, reason="norm"
    )


def test_the_state_of_another_model_is_dropped_though_the_update_is_of_this_one() -> None:
    outbox = booted(AgentMemory(pending(state(B)), state(A)))
    assert outbox.model_is(B) == [ForgetState()]
    assert outbox.inbox(refused(), 0.0) == [ResolvePendingUpdate(accepted=False)]
    assert outbox.settled is None


def test_an_update_of_another_model_is_dropped_though_the_state_is_of_this_one() -> None:
    of_a = state(A)
    outbox = booted(AgentMemory(pending(state(B)), of_a))
    assert outbox.model_is(A) == [ResolvePendingUpdate(accepted=False)]
    assert outbox.settled is of_a


def test_the_state_of_the_same_model_stays() -> None:
    settled = state(A)
    outbox = booted(AgentMemory(pending(state(A, 2.0)), settled))
    assert outbox.model_is(A) == []
    assert outbox.inbox(refused(), 0.0) == [ResolvePendingUpdate(accepted=False)]
    assert outbox.settled is settled


def test_the_pending_state_is_worked_with_until_a_receipt_refuses_the_update() -> None:
    settled, next_state = state(A), state(A, 2.0)
    outbox = booted(AgentMemory(pending(next_state), settled))
    assert outbox.state is next_state
    outbox.inbox(refused(), 0.0)
    assert outbox.state is settled


def test_a_refusal_leaves_the_state_that_a_training_has_begun_from() -> None:
    next_state = state(A, 2.0)
    outbox = booted(AgentMemory(pending(next_state), state(A)))
    assert outbox.take_state() is next_state
    assert outbox.inbox(refused(), 0.0) == [ResolvePendingUpdate(accepted=True)]
    assert outbox.settled is next_state


def test_a_newer_update_settles_the_pending_one_as_accepted() -> None:
    older, newer = pending(state(A, 2.0)), pending(state(A, 3.0), round_id=4)
    outbox = booted(AgentMemory(older, state(A)))
    outbox.disconnected()
    resolved, spooled = outbox.put(newer, 0.0)
    assert resolved == ResolvePendingUpdate(accepted=True)
    assert isinstance(spooled, SpoolUpdate)
    assert spooled.update is newer
    assert outbox.settled is older.state
    assert outbox.state is newer.state
