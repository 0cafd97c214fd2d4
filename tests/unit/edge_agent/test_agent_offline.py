"""An agent whose link is down, for a minute or for a day, and what it does when it is up again."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol import blobs
from broker.protocol.messages import ProgramManifest
from broker.protocol.topics import ChunkTopic, ProgramTopic
from broker.service.events import Connected, Disconnected, Publish, Subscribe, Tick
from edge_agent.machine.events import BlobRecalled, LoadPackage, PackageFailed, SpoolUpdate
from tests.unit.edge_agent.agent_stage import (
    MAX_PAYLOAD,
    PACKAGE,
    TOPICS,
    Device,
    digest,
    only,
    ready,
    status_in,
    trained,
    training,
    update_in,
)

CHUNKS = TOPICS.chunks_of(digest(PACKAGE))
DAY_S = 86_400.0


def tick_until(device: Device, end_s: float) -> list[Any]:
    """All that it does when it is asked whenever it wants to be, and at the end."""
    actions: list[Any] = []
    while device.now_s < end_s:
        wait_s = device.agent.wait_s(device.now_s)
        device.now_s = min(end_s, device.now_s + wait_s + 1e-3)
        actions += device.feed(Tick())
    return actions


def test_offline_it_says_nothing_that_would_wait_in_the_queue() -> None:
    device = training()
    device.feed(trained([1, 2, 3, 4]))
    device.feed(Disconnected())
    assert tick_until(device, DAY_S) == []


def test_offline_there_are_no_heartbeats_and_the_next_connection_begins_with_one() -> None:
    device = ready(heartbeat_s=60.0)
    device.feed(Disconnected())
    assert tick_until(device, DAY_S) == []
    assert device.agent.wait_s(device.now_s) > 1e9
    assert status_in(device.feed(Connected(MAX_PAYLOAD))).heartbeat_s == 60.0
    assert device.agent.wait_s(device.now_s) == pytest.approx(60.0)


def test_an_update_that_is_finished_offline_is_kept_and_sent_once_when_the_plan_comes_again() -> (
    None
):
    device = training()
    device.feed(Disconnected())
    assert [type(a) for a in device.feed(trained([1, 2, 3, 4]))] == [SpoolUpdate]
    assert tick_until(device, DAY_S) == []
    device.feed(Connected(MAX_PAYLOAD))
    update_in(device.plan())
    assert not only(device.feed(Tick()), Publish)


def test_an_update_is_sent_also_when_the_plan_does_not_come_again() -> None:
    device = training()
    device.feed(Disconnected())
    device.feed(trained([1, 2, 3, 4]))
    device.feed(Connected(MAX_PAYLOAD))
    update_in(tick_until(device, 46.0))


def test_a_fetch_survives_an_outage_of_a_day() -> None:
    device = Device()
    device.manifest()
    device.feed(Disconnected())
    assert tick_until(device, DAY_S) == []
    device.feed(Connected(MAX_PAYLOAD))
    assert only(device.blob(PACKAGE), LoadPackage)


def given_up() -> Device:
    """A device whose broker had nothing for it: connected, and out for now."""
    device = Device()
    device.manifest()
    actions: list[Any] = []
    while not actions or "/status" not in actions[-1].topic:
        assert device.now_s < 1400.0
        actions = tick_until(device, device.now_s + device.agent.wait_s(device.now_s))
        actions = only(actions, Publish)
    status = status_in(actions)
    assert status.unavailable_reason.startswith("no_program: 1 of 1 chunks did not come")
    assert status.is_transient
    assert device.filters[4:] == []
    return device


def test_a_package_that_was_given_up_is_fetched_anew_after_a_while() -> None:
    device = given_up()
    assert Subscribe(CHUNKS) in tick_until(device, device.now_s + 451.0)
    assert only(device.blob(PACKAGE), LoadPackage)
    assert status_in(device.loaded()).unavailable_reason == ""


def test_it_is_tried_ever_more_rarely_but_for_ever() -> None:
    device = given_up()
    tries = only(tick_until(device, 4 * DAY_S), Subscribe)
    assert 6 * 4 * 10 < len(tries) < 6 * 4 * 24, "six subscriptions a try, a try in 1.3 to 2 hours"


def test_the_next_connection_does_not_wait_for_that() -> None:
    device = given_up()
    device.feed(Disconnected())
    assert Subscribe(CHUNKS) in device.feed(Connected(MAX_PAYLOAD))
    assert device.manifest() == []
    assert only(device.blob(PACKAGE), LoadPackage)


def test_damaged_chunks_are_not_for_ever_either() -> None:
    device = Device()
    device.manifest()
    for _ in range(3):
        device.hear(ChunkTopic(digest(PACKAGE), 0), b"rubbish")
    assert Subscribe(CHUNKS) in tick_until(device, 450.0)


@pytest.mark.parametrize("passing", [True, False])
def test_a_failure_to_load_is_tried_again_when_it_may_pass(passing: bool) -> None:
    device = Device()
    device.manifest()
    device.blob(PACKAGE)
    failed = PackageFailed(digest(PACKAGE), "no_program", "MemoryError()", is_transient=passing)
    device.feed(failed)
    assert (Subscribe(CHUNKS) in tick_until(device, 450.0)) == passing


def test_a_package_that_is_cut_otherwise_by_now_is_fetched_as_it_is() -> None:
    device = Device()
    device.manifest()
    ref, payloads = blobs.split(PACKAGE, 1024)
    device.hear(ProgramTopic(), ProgramManifest(name="m", package=ref, fingerprint="0" * 16))
    actions: list[Any] = []
    device.feed(BlobRecalled(ref.sha256, ()))
    for n, payload in enumerate(payloads):
        actions += device.hear(ChunkTopic(ref.sha256, n), payload)
    assert only(actions, LoadPackage)
