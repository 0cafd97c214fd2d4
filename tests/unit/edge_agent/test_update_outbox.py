"""The update without a receipt, and what rounding lost: each belongs to one model."""

from __future__ import annotations

from random import Random

import numpy as np

from broker.protocol.messages import Receipt
from broker.protocol.topics import Topics
from edge_agent.machine.events import ForgetResidual, SettleUpdate
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from edge_agent.machine.update_outbox import Outbox
from learning.vector.parameters import F32

A, B = "a" * 16, "b" * 16
RESIDUAL_OF_A = np.ones(4, np.float32)


def pending(fingerprint: str, residual: F32) -> SpooledUpdate:
    return SpooledUpdate("s1", 3, "b1", 1, fingerprint, 60.0, b"frame", residual)


def booted(memory: AgentMemory) -> Outbox:
    return Outbox(Topics("f"), "pi-1", memory, Random(1))


def refused() -> Receipt:
    return Receipt(session="s1", round_id=3, boot="b1", attempt=1, accepted=False, reason="norm")


def test_a_residual_of_another_model_is_dropped_though_the_update_is_of_this_one() -> None:
    update = pending(B, np.zeros(6, np.float32))
    outbox = booted(AgentMemory(update, RESIDUAL_OF_A, A))
    assert outbox.model_is(B) == [ForgetResidual()]
    assert outbox.inbox(refused(), 0.0) == [SettleUpdate(accepted=False)]
    assert outbox.residual is None


def test_an_update_of_another_model_is_dropped_though_the_residual_is_of_this_one() -> None:
    outbox = booted(AgentMemory(pending(B, np.zeros(6, np.float32)), RESIDUAL_OF_A, A))
    assert outbox.model_is(A) == [SettleUpdate(accepted=False)]
    assert outbox.residual is RESIDUAL_OF_A


def test_what_is_of_the_model_stays() -> None:
    outbox = booted(AgentMemory(pending(A, RESIDUAL_OF_A), RESIDUAL_OF_A, A))
    assert outbox.model_is(A) == []
    assert outbox.inbox(refused(), 0.0) == [SettleUpdate(accepted=False)]
    assert outbox.residual is RESIDUAL_OF_A
