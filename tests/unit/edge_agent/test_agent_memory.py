"""Memory of the agent's machine over many rounds."""

from __future__ import annotations

import gc
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np

from broker.protocol import topics
from edge_agent.machine.events import ResolvePendingUpdate, StartJob
from learning.vector.metrics import Sums
from tests.unit.edge_agent.agent_stage import (
    TOPICS,
    Device,
    measured,
    only,
    plan,
    ready,
    ref,
    trained,
    update_in,
)

#: Caches of plans and topics are full by then. The decoder's cache of short texts and the free
#: lists of Python hold up to 13 KB more at the one measurement than at the other, however many
#: rounds lie between: over so many that is less than 16 bytes a round.
WARM_UP, ROUNDS = 350, 1000
#: A topic, digest or message that stays would be more.
TOLERATED_BYTES_PER_ROUND = 64


def one_round(device: Device, number: int) -> None:
    """Trains on a new θ, gets the receipt, and measures the next one."""
    theta = np.full(4, number, np.float32).tobytes()
    changes: dict[str, Any] = {
        "round_id": number,
        "version": number,
        "blobs": {"weights": ref(theta)},
    }
    device.plan(**changes, codec="int8")
    assert only(device.blob(theta), StartJob)
    sent = device.feed(trained([1.0, 0.001, -0.003, 0.5], **changes, codec="int8"))
    attempt = update_in(sent)[0].attempt
    receipt = device.receipt(accepted=True, round_id=number, attempt=attempt)
    (resolved,) = only(receipt, ResolvePendingUpdate)
    assert resolved.accepted
    after = np.full(4, -number, np.float32).tobytes()
    changes |= {"phase": "evaluate", "version": number + 1, "blobs": {"weights": ref(after)}}
    device.plan(**changes)
    assert only(device.blob(after), StartJob)
    device.feed(measured(plan(**changes), Sums(1.0, 5.0, {"mae": 1.0})))
    device.actions.clear()


def growth() -> tuple[float, list[str]]:
    """Returns the bytes that a round leaves behind, and the device's subscriptions at the end."""
    # The cache of parsed topics is full after 512 rounds: too many to wait for.
    with patch.object(topics, "_remembered_tail", topics._parse_tail):
        device = ready()
        tracemalloc.start()  # before the warm-up: what comes later may replace what was not traced
        for number in range(1, WARM_UP):
            one_round(device, number)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(WARM_UP, WARM_UP + ROUNDS):
            one_round(device, number)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    return (after - before) / ROUNDS, sorted(device.filters)


def test_hundreds_of_rounds_leave_nothing_behind() -> None:
    # In a process of its own: what other tests left in caches and free lists is replaced meanwhile.
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        bytes_per_round, filters = fresh.submit(growth).result()
    assert bytes_per_round < TOLERATED_BYTES_PER_ROUND
    assert filters, "it still listens"
    assert all(name.startswith(TOPICS.root) for name in filters)
    assert len(filters) < 10, "no subscription stays"
