"""Chunked blobs: any order, duplicates, damage, and memory that is bounded."""

from __future__ import annotations

import hashlib
import struct
import weakref
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.protocol.blobs import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MIN_CHUNK_BYTES,
    BlobReceiver,
    Chunk,
    CommonChunks,
    chunk_bytes_for,
    describe,
    parse_chunk,
    split,
)
from broker.protocol.messages import BlobRef
from fedge.errors import WireError

LIMIT = 1 << 20
BLOB = bytes(range(256)) * 12  # 3,072 bytes: three chunks of 1,024


def raw(
    *, index: int = 0, count: int = 1, size: int = 4, data: bytes = b"abcd", magic: bytes = b"FDC1"
) -> bytes:
    """A chunk that may lie about itself."""
    digest = hashlib.sha256(b"abcd").digest()
    return struct.pack(">4sIIQI32s", magic, index, count, size, zlib.crc32(data), digest) + data


def chunks(blob: bytes = BLOB, chunk_bytes: int = 1024) -> tuple[BlobReceiver, list[Chunk]]:
    ref, payloads = split(blob, chunk_bytes)
    return BlobReceiver(ref, LIMIT), [parse_chunk(payload) for payload in payloads]


def test_the_bytes_of_a_chunk_are_kept_for_ever() -> None:
    ref, (payload,) = split(b"abcd")
    sha256 = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
    assert ref == BlobRef(sha256=sha256, size=4, chunks=1)
    assert payload == (
        b"FDC1"
        + bytes.fromhex("00000000000000010000000000000004ed82cd11")
        + bytes.fromhex(sha256)
        + b"abcd"
    )
    assert HEADER_BYTES == 56


def test_a_blob_is_cut_into_chunks_that_say_what_they_are_of() -> None:
    ref, payloads = split(BLOB + b"!", 1024)
    assert (ref.size, ref.chunks) == (3073, 4)
    assert [len(payload) - HEADER_BYTES for payload in payloads] == [1024, 1024, 1024, 1]
    assert [parse_chunk(payload).index for payload in payloads] == [0, 1, 2, 3]
    assert {parse_chunk(payload).ref for payload in payloads} == {ref}
    assert describe(BLOB + b"!", 1024) == ref


@given(st.binary(min_size=1, max_size=9000), st.sampled_from([1024, 1500, 4096]), st.randoms())
def test_chunks_in_any_order_and_more_than_once_make_the_blob(
    blob: bytes, chunk_bytes: int, rng: object
) -> None:
    ref, payloads = split(blob, chunk_bytes)
    receiver = BlobReceiver(ref, LIMIT)
    order = payloads * 2
    rng.shuffle(order)  # type: ignore[attr-defined]
    whole = None
    for payload in order:
        if whole is None:
            whole = receiver.add(parse_chunk(payload))
    assert whole == blob


def test_it_says_how_many_are_missing() -> None:
    receiver, parts = chunks()
    missing = [receiver.missing]
    for part in (parts[2], parts[2], parts[0]):
        assert receiver.add(part) is None
        missing.append(receiver.missing)
    assert missing == [3, 2, 2, 1]
    assert receiver.add(parts[1]) == BLOB


def test_chunks_fit_the_connection() -> None:
    assert chunk_bytes_for(1 << 20) == CHUNK_BYTES
    assert chunk_bytes_for(128 * 1024) == CHUNK_BYTES  # AWS IoT Core
    assert chunk_bytes_for(10_000) == 10_000 - HEADER_BYTES
    assert chunk_bytes_for(10) == MIN_CHUNK_BYTES


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_chunk(payload: bytes) -> None:
    with pytest.raises(WireError):
        parse_chunk(payload)


@settings(max_examples=300)
@given(st.integers(0, len(BLOB) + HEADER_BYTES - 1), st.integers(1, 255))
def test_one_damaged_byte_never_goes_unnoticed(place: int, flip: int) -> None:
    ref, (payload,) = split(BLOB)
    damaged = bytearray(payload)
    damaged[place] ^= flip
    with pytest.raises(WireError):
        BlobReceiver(ref, LIMIT).add(parse_chunk(bytes(damaged)))


@pytest.mark.parametrize("cut", [0, 10, HEADER_BYTES, HEADER_BYTES + 1, -1])
def test_a_truncated_chunk_is_refused(cut: int) -> None:
    with pytest.raises(WireError):
        parse_chunk(split(BLOB)[1][0][:cut])


@pytest.mark.parametrize(
    "payload",
    [
        raw(magic=b"FDG1"),
        raw(index=1),  # of one
        raw(count=0),
        raw(count=2),  # so many chunks for 4 bytes
        raw(count=4_000_000_000, size=1 << 40),
        raw(size=3),  # holds more than the whole
        raw(data=b""),
    ],
)
def test_chunks_that_contradict_themselves_are_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        parse_chunk(payload)


def test_a_chunk_of_another_blob_is_refused_and_changes_nothing() -> None:
    receiver, parts = chunks()
    _, others = chunks(BLOB[::-1])
    receiver.add(parts[0])
    with pytest.raises(WireError, match="while receiving"):
        receiver.add(others[1])
    assert receiver.missing == 2
    receiver.add(parts[1])
    assert receiver.add(parts[2]) == BLOB


def test_a_wrong_digest_is_noticed_at_the_end_and_everything_can_be_fetched_again() -> None:
    receiver, parts = chunks()
    receiver.add(parts[0])
    receiver.add(Chunk(receiver.ref, 1, b"x" * 1024))
    with pytest.raises(WireError, match="wrong digest"):
        receiver.add(parts[2])
    assert receiver.missing == 3
    receiver.add(parts[0])
    receiver.add(parts[1])
    assert receiver.add(parts[2]) == BLOB


def test_a_blob_that_comes_short_is_refused() -> None:
    receiver, parts = chunks()
    receiver.add(parts[0])
    receiver.add(parts[1])
    with pytest.raises(WireError, match="wrong digest"):
        receiver.add(Chunk(receiver.ref, 2, b"short"))


def test_a_blob_beyond_the_limit_is_refused_before_its_first_byte() -> None:
    ref = BlobRef(sha256="0" * 64, size=LIMIT + 1, chunks=2)
    with pytest.raises(WireError, match=f"{LIMIT + 1} bytes, limit {LIMIT}"):
        BlobReceiver(ref, LIMIT)


def test_an_endless_blob_is_stopped_at_the_size_it_promised() -> None:
    ref = BlobRef(sha256="0" * 64, size=10_000, chunks=10)
    receiver = BlobReceiver(ref, LIMIT)
    held = 0
    for index in range(9):
        chunk = Chunk(ref, index, b"x" * 4000)
        if held + 4000 > 10_000:
            with pytest.raises(WireError, match="longer than its 10000 bytes"):
                receiver.add(chunk)
        else:
            assert receiver.add(chunk) is None
            held += 4000
    assert receiver.missing == 8  # two are held: 8,000 bytes


def test_the_number_of_chunks_is_bounded_by_the_size() -> None:
    """A million chunks of one byte would cost a hundred times their blob in bookkeeping."""
    size = 1 << 20
    most = size // MIN_CHUNK_BYTES + 1
    assert parse_chunk(raw(count=most, size=size)).ref.chunks == most
    with pytest.raises(WireError, match="do not fit"):
        parse_chunk(raw(count=most + 1, size=size))
    BlobReceiver(BlobRef(sha256="0" * 64, size=size, chunks=most), size)
    with pytest.raises(WireError, match="do not fit a blob of 10 bytes"):
        BlobReceiver(BlobRef(sha256="0" * 64, size=10, chunks=10_000_000), size)


# -- receivers of one process -------------------------------------------------------------------


def test_receivers_share_chunks_and_the_whole_blob() -> None:
    ref, payloads = split(BLOB, 1024)
    common = CommonChunks()
    one, other = (BlobReceiver(ref, LIMIT, common) for _ in range(2))
    for payload in payloads[:-1]:
        assert one.add(parse_chunk(payload)) is None
        assert other.add(parse_chunk(payload)) is None
    assert other.missing == 1, "each counts what came to it alone"
    whole = one.add(parse_chunk(payloads[-1]))
    assert whole == BLOB
    assert other.add(parse_chunk(payloads[-1])) is whole


def test_a_forged_chunk_of_one_receiver_does_not_reach_another() -> None:
    ref, payloads = split(BLOB, 1024)
    common = CommonChunks()
    victim, other = (BlobReceiver(ref, LIMIT, common) for _ in range(2))
    victim.add(Chunk(ref, 0, b"x" * 1024))
    for payload in payloads[1:-1]:
        victim.add(parse_chunk(payload))
    with pytest.raises(WireError, match="wrong digest"):
        victim.add(parse_chunk(payloads[-1]))
    found = [other.add(parse_chunk(payload)) for payload in payloads]
    assert found[-1] == BLOB
    again = [victim.add(parse_chunk(payload)) for payload in payloads]
    assert again[-1] == BLOB


def test_common_chunks_are_freed_with_the_last_receiver() -> None:
    ref, payloads = split(BLOB, 1024)
    common = CommonChunks()
    receiver = BlobReceiver(ref, LIMIT, common)
    receiver.add(parse_chunk(payloads[0]))
    held = weakref.ref(common.of(ref))
    assert held() is not None
    del receiver
    assert held() is None
