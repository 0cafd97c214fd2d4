"""Fetching: only what is missing, patiently, and never for ever."""

from __future__ import annotations

import math
from random import Random

import pytest

from broker.protocol import blobs
from broker.protocol.messages import BlobRef
from broker.protocol.topics import Topics
from broker.service.events import Subscribe, Unsubscribe
from edge_agent.machine.blob_fetcher import STALL_S, TRIES, Fetcher, Progressed
from edge_agent.machine.events import ForgetBlob, KeepChunk, RecallBlob
from fedge.errors import WireError

TOPICS = Topics("f")
CHUNK = 1024
BLOB = bytes(range(256)) * 16  # four chunks of 1,024 bytes
SMALL = b"one chunk"


def cut(blob: bytes = BLOB) -> tuple[BlobRef, list[bytes]]:
    return blobs.split(blob, CHUNK)


def fetcher() -> Fetcher:
    return Fetcher(TOPICS, 1 << 20, Random(1))


def begun(now_s: float = 0.0) -> tuple[Fetcher, BlobRef, list[bytes]]:
    """A fetch of four chunks of which the disk holds none."""
    found, (ref, payloads) = fetcher(), cut()
    assert found.begin(ref, now_s).actions == (RecallBlob(ref.sha256),)
    assert found.recalled(ref.sha256, [], now_s).actions == (
        Subscribe(TOPICS.chunks_of(ref.sha256)),
    )
    return found, ref, payloads


def single(ref: BlobRef, index: int) -> str:
    return f"fedge/v1/f/blobs/{ref.sha256}/{index}"


def test_a_blob_of_one_chunk_never_touches_the_disk() -> None:
    found, (ref, (payload,)) = fetcher(), cut(SMALL)
    everything = TOPICS.chunks_of(ref.sha256)
    assert found.begin(ref, 0.0).actions == (Subscribe(everything),)
    done = found.chunk(ref.sha256, payload, 1.0)
    assert done == Progressed((Unsubscribe(everything),), blob=(ref.sha256, SMALL))


def test_chunks_of_a_large_blob_are_kept_as_they_come_and_once() -> None:
    found, ref, payloads = begun()
    assert found.chunk(ref.sha256, payloads[2], 1.0).actions == (
        KeepChunk(ref.sha256, payloads[2]),
    )
    assert found.chunk(ref.sha256, payloads[2], 1.0).actions == ()


def test_after_a_power_cut_only_the_missing_chunks_are_subscribed_to() -> None:
    found, (ref, payloads) = fetcher(), cut()
    found.begin(ref, 0.0)
    step = found.recalled(ref.sha256, [payloads[0], payloads[3]], 0.0)
    stale = Unsubscribe(TOPICS.chunks_of(ref.sha256))  # of the instance before, in the session
    assert step.actions == (stale, Subscribe(single(ref, 1)), Subscribe(single(ref, 2)))
    found.chunk(ref.sha256, payloads[1], 1.0)
    done = found.chunk(ref.sha256, payloads[2], 1.0)
    assert done.blob == (ref.sha256, BLOB)
    assert set(done.actions) >= {Unsubscribe(single(ref, 1)), Unsubscribe(single(ref, 2))}


def test_what_the_disk_holds_whole_is_not_fetched_at_all() -> None:
    found, (ref, payloads) = fetcher(), cut()
    found.begin(ref, 0.0)
    assert found.recalled(ref.sha256, payloads, 0.0) == Progressed(blob=(ref.sha256, BLOB))
    assert found.next_s() == math.inf


def test_damaged_chunks_on_disk_are_fetched_again() -> None:
    found, (ref, payloads) = fetcher(), cut()
    found.begin(ref, 0.0)
    flipped = payloads[0][:-1] + bytes([payloads[0][-1] ^ 1])
    step = found.recalled(ref.sha256, [flipped, b"", payloads[1], payloads[2]], 0.0)
    assert step.actions[1:] == (Subscribe(single(ref, 0)), Subscribe(single(ref, 3)))


def test_a_stalled_fetch_asks_the_broker_and_the_coordinator_for_what_is_missing() -> None:
    found, ref, payloads = begun()
    found.chunk(ref.sha256, payloads[0], 5.0)
    found.chunk(ref.sha256, payloads[1], 6.0)
    due_s = found.next_s()
    assert due_s < math.inf
    assert 6.0 + STALL_S <= due_s <= 6.0 + 1.5 * STALL_S
    assert found.tick(due_s - 0.1) == []
    (step,) = found.tick(due_s)
    assert step.missing == (ref.sha256, (2, 3))
    assert step.actions == (
        Unsubscribe(TOPICS.chunks_of(ref.sha256)),
        Subscribe(single(ref, 2)),
        Subscribe(single(ref, 3)),
    )


def test_chunks_that_were_on_their_way_at_a_power_cut_are_kept_for_the_fetch_to_come() -> None:
    found, (ref, payloads) = fetcher(), cut()
    small, (alone,) = cut(SMALL)
    assert found.chunk(small.sha256, alone, 0.0) == Progressed()  # cheap to fetch again
    assert found.chunk(ref.sha256, b"damaged", 0.0) == Progressed()
    assert found.chunk("0" * 64, payloads[0], 0.0) == Progressed()  # of another blob
    kept = found.chunk(ref.sha256, payloads[0], 0.0)
    assert kept == Progressed((KeepChunk(ref.sha256, payloads[0]),))
    found.begin(ref, 1.0)
    found.recalled(ref.sha256, payloads[:1], 1.0)
    assert found.chunk("0" * 64, payloads[1], 2.0) == Progressed()  # late, of a blob before


def test_a_broker_with_a_short_queue_gives_a_large_blob_in_portions() -> None:
    found, (ref, payloads) = fetcher(), cut(bytes(range(256)) * 4 * 150)
    found.begin(ref, 0.0)
    found.recalled(ref.sha256, [], 0.0)
    for index in range(10):  # of all that were subscribed to
        found.chunk(ref.sha256, payloads[index], 1.0)
    (stalled,) = found.tick(100.0)
    assert stalled.missing == (ref.sha256, tuple(range(10, 74)))
    assert stalled.actions[1:] == tuple(Subscribe(single(ref, n)) for n in range(10, 74))
    for index in range(10, 73):
        assert found.chunk(ref.sha256, payloads[index], 101.0).actions == (
            KeepChunk(ref.sha256, payloads[index]),
        )
    _, *following = found.chunk(ref.sha256, payloads[73], 102.0).actions  # without another stall
    assert following[:64] == [Unsubscribe(single(ref, n)) for n in range(10, 74)]
    assert following[64:] == [Subscribe(single(ref, n)) for n in range(74, 138)]


def test_only_tries_that_bring_nothing_are_counted() -> None:
    found, (ref, payloads) = fetcher(), cut(bytes(range(256)) * 4 * 3 * TRIES)
    found.begin(ref, 0.0)
    found.recalled(ref.sha256, [], 0.0)
    now_s = 0.0
    for payload in payloads[:-1]:
        now_s += 1000.0
        (stalled,) = found.tick(now_s)
        assert stalled.failed is None
        found.chunk(ref.sha256, payload, now_s)
    assert found.chunk(ref.sha256, payloads[-1], now_s).blob is not None


def test_a_fetch_that_never_ends_is_given_up_with_a_reason() -> None:
    found, ref, _ = begun()
    waits, now_s, failed = [], 0.0, None
    while failed is None:
        due_s = found.next_s()
        assert due_s < math.inf
        waits.append(due_s - now_s)
        now_s = due_s
        (step,) = found.tick(now_s)
        failed = step.failed
    assert failed == (ref.sha256, f"4 of 4 chunks did not come in {TRIES} tries")
    assert len(waits) == TRIES
    assert waits[3] > 2 * waits[0], "waits grow"
    assert found.next_s() == math.inf


def test_jitter_delays_the_subscription_by_a_random_part() -> None:
    starts = []
    for seed in range(20):
        found, (ref, _) = Fetcher(TOPICS, 1 << 20, Random(seed)), cut(SMALL)
        assert found.begin(ref, 100.0, jitter_s=10.0).actions == ()
        start_s = found.next_s()
        assert start_s < math.inf
        assert 100.0 <= start_s <= 110.0
        (step,) = found.tick(start_s)
        assert step.actions == (Subscribe(TOPICS.chunks_of(ref.sha256)),)
        starts.append(start_s)
    assert max(starts) - min(starts) > 5.0


def test_damaged_chunks_begin_the_fetch_anew_and_too_many_end_it() -> None:
    found, ref, _ = begun()
    everything = TOPICS.chunks_of(ref.sha256)
    for _ in range(2):
        step = found.chunk(ref.sha256, b"rubbish" * 20, 1.0)
        assert step.actions == (
            ForgetBlob(ref.sha256),
            Unsubscribe(everything),
            Subscribe(everything),
        )
    end = found.chunk(ref.sha256, b"rubbish" * 20, 1.0)
    assert end.failed is not None
    assert end.actions == (Unsubscribe(everything), ForgetBlob(ref.sha256))
    assert found.chunk(ref.sha256, b"rubbish", 1.0) == Progressed()


def test_chunks_of_another_cut_that_are_left_at_the_broker_are_passed_over() -> None:
    found, ref, payloads = begun()
    _, larger = blobs.split(BLOB, 2048)
    for payload in 5 * larger:
        assert found.chunk(ref.sha256, payload, 1.0) == Progressed()
    for payload in payloads[:-1]:
        found.chunk(ref.sha256, payload, 2.0)
    assert found.chunk(ref.sha256, payloads[-1], 2.0).blob == (ref.sha256, BLOB)


def test_a_fetch_begins_anew_when_the_blob_is_cut_otherwise() -> None:
    found, ref, payloads = begun()
    found.chunk(ref.sha256, payloads[0], 1.0)
    other, (one, two) = blobs.split(BLOB, 2048)
    assert found.begin(other, 2.0).actions == (
        Unsubscribe(TOPICS.chunks_of(ref.sha256)),
        ForgetBlob(ref.sha256),
        RecallBlob(ref.sha256),
    )
    found.recalled(ref.sha256, [], 2.0)
    assert found.begin(other, 2.0) == Progressed()
    found.chunk(ref.sha256, one, 3.0)
    assert found.chunk(ref.sha256, two, 3.0).blob == (ref.sha256, BLOB)


def test_that_nothing_comes_while_the_link_is_down_is_no_stall() -> None:
    found, ref, _ = begun()
    for _ in range(TRIES - 1):
        now_s = found.next_s()
        assert now_s < math.inf
        found.tick(now_s)
    found.disconnected()
    assert found.next_s() == math.inf
    assert found.tick(1e6) == []
    found.connected(1 << 20, 1e6)
    due_s = found.next_s()
    assert due_s < math.inf
    assert 1e6 + STALL_S <= due_s <= 1e6 + 1.5 * STALL_S, "the tries are counted anew"
    (step,) = found.tick(due_s)
    assert step.failed is None
    assert step.missing == (ref.sha256, (0, 1, 2, 3))


def test_chunks_that_the_connection_does_not_take_are_given_up_at_the_first_stall() -> None:
    found, ref, _ = begun()
    found.connected(1_079, 0.0)  # a byte less than each chunk with its header
    due_s = found.next_s()
    assert due_s < math.inf
    (step,) = found.tick(due_s)
    assert step.actions == (Unsubscribe(TOPICS.chunks_of(ref.sha256)),)
    assert step.failed is not None
    assert step.failed[1].startswith("chunks of 1080 bytes do not come: this connection takes 1079")
    assert len(found) == 0


def test_a_refused_subscription_ends_its_fetch() -> None:
    found, ref, _ = begun()
    everything = TOPICS.chunks_of(ref.sha256)
    assert found.refused("fedge/v1/f/blobs/other/+", "not authorised") == Progressed()
    step = found.refused(everything, "not authorised")
    assert step.actions == (Unsubscribe(everything),)
    text = f"the broker refuses the subscription {everything}: not authorised"
    assert step.failed == (ref.sha256, text)


def test_a_blob_that_is_too_large_is_refused_before_anything_is_asked_for() -> None:
    ref = BlobRef(sha256="a" * 64, size=(1 << 20) + 1, chunks=9)
    with pytest.raises(WireError, match="limit 1048576"):
        fetcher().begin(ref, 0.0)


def test_what_nobody_wants_any_more_is_unsubscribed_and_freed() -> None:
    found, ref, _ = begun()
    assert found.forget(ref) == (
        Unsubscribe(TOPICS.chunks_of(ref.sha256)),
        ForgetBlob(ref.sha256),
    )
    assert found.next_s() == math.inf
