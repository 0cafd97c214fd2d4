"""Statuses are written seldom, however often they change; the latest one is not lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from broker.protocol import messages
from broker.protocol.messages import AgentStatus, TargetSummary
from coordinator.machine.events import ForgetAgent, SaveAgent
from coordinator.storage.durability import STATUSES_EVERY_S, Durability
from coordinator.storage.store import Store
from models.package.stored_versions import STORE_FILE


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path)) as made:
        yield made


def status(rows: int) -> SaveAgent:
    return SaveAgent("a", AgentStatus(state="online", agent_instance="1", train_examples=rows))


def on_disk(store: Store) -> list[int]:
    """Rows of the agents that another process would find after a power cut now."""
    with closing(Store.open_existing(store.path.parent)) as other:
        return [agent.status.train_examples for agent in other.agents()]


def writes(store: Store) -> int:
    """Bytes of the write-ahead log, which is only appended to in so short a time."""
    return store.path.with_name(STORE_FILE + "-wal").stat().st_size


def test_a_status_that_changes_many_times_a_second_is_written_every_few_seconds(
    store: Store,
) -> None:
    durability, flushed = Durability(store), []
    size = writes(store)
    for step in range(1200):  # a minute
        durability.perform(status(step))
        durability.flush(step / 20)
        if (now := writes(store)) != size:
            flushed.append(step / 20)
            size = now
    # The first one at once.
    assert flushed == [STATUSES_EVERY_S * n for n in range(12)]
    assert on_disk(store) == [1100]
    durability.flush(60.0)
    assert on_disk(store) == [1199]
    durability.perform(status(2000))
    durability.flush(60.1)
    assert on_disk(store) == [1199]
    durability.flush()  # the process ends
    assert on_disk(store) == [2000]


def test_statuses_are_written_with_whatever_else_is(store: Store) -> None:
    durability = Durability(store)
    durability.perform(status(1))
    durability.flush(0.0)
    durability.perform(status(2))
    durability.touch()
    durability.flush(0.1)
    assert on_disk(store) == [2]


def test_of_an_agent_that_was_forgotten_and_came_back_the_last_word_counts(store: Store) -> None:
    durability = Durability(store)
    durability.perform(status(1))
    durability.flush(0.0)
    durability.perform(ForgetAgent("a"))
    durability.perform(status(2))
    durability.flush(10.0)
    assert on_disk(store) == [2]
    durability.perform(status(3))
    durability.perform(ForgetAgent("a"))
    durability.flush(20.0)
    assert on_disk(store) == []


def test_a_large_status_is_written_less_often(store: Store) -> None:
    targets = {f"t{n}": TargetSummary(classes=tuple(range(1000, 1900))) for n in range(16)}
    durability, found = Durability(store), []
    for now_s in range(0, 120, 10):
        born = msgspec.structs.replace(status(now_s).status, targets=targets)
        durability.perform(SaveAgent("a", born))
        durability.flush(float(now_s))
        found += on_disk(store)
    assert 70 < len(messages.encode(born)) / 1024 < 78  # 2 KiB a second
    assert sorted(set(found)) == [0, 40, 80]
    durability.flush()
    assert on_disk(store) == [110]
