"""Chunks that agents say they miss: published again, and not for ever."""

from __future__ import annotations

import numpy as np
import pytest

from broker.protocol.messages import BlobRef
from broker.protocol.topics import Topics
from coordinator.machine.publisher import LEAST_FOR_AGENTS, Publisher
from learning.vector.vectors import Vectors
from tests.unit.coordinator.machine.coordinator_stage import PACKAGE, SESSION

ROWS = 10_000


def theta(number: float) -> Vectors:
    return {"weights": np.full(ROWS, number, np.float32)}


@pytest.fixture
def publisher() -> Publisher:
    made = Publisher(Topics("f"), PACKAGE, SESSION, "c1")
    made.limit(LEAST_FOR_AGENTS)  # several chunks
    return made


def published(publisher: Publisher, ref: BlobRef, index: int, until_s: int) -> list[int]:
    """Seconds at which a chunk is published for somebody who asks for it every second."""
    return [s for s in range(until_s) if publisher.again(ref.sha256, [index], float(s))]


def test_a_chunk_that_is_asked_for_again_and_again_comes_less_and_less_often(
    publisher: Publisher,
) -> None:
    ref = publisher.vectors(theta(1.0))[0]["weights"]
    moments = published(publisher, ref, 0, 3000)
    assert moments == [0, 5, 15, 35, 75, 155, 315, 635, 1235, 1835, 2435]
    # Another chunk was not asked for: it comes at once.
    assert len(publisher.again(ref.sha256, [1, 1, 0, 10**6], 2436.0)) == 1
    assert publisher.again("0" * 64, [0], 2436.0) == []


def test_a_new_version_comes_at_once_and_the_one_that_stays_keeps_its_pause(
    publisher: Publisher,
) -> None:
    old = publisher.vectors(theta(1.0))[0]["weights"]
    stays = publisher.vectors(theta(2.0), keep=1)[0]["weights"]
    for ref in (old, stays):
        assert published(publisher, ref, 0, 100) == [0, 5, 15, 35, 75]
    new = publisher.vectors(theta(3.0), keep=1)[0]["weights"]  # `old` goes
    assert publisher.again(old.sha256, [0], 100.0) == []
    assert publisher.again(stays.sha256, [0], 100.0) == []
    assert len(publisher.again(new.sha256, [0], 100.0)) == 1
    publisher.vectors(theta(4.0), keep=1)
    back = publisher.vectors(theta(1.0), keep=1)[0]["weights"]
    assert back == old
    assert published(publisher, back, 0, 6) == [0, 5]
