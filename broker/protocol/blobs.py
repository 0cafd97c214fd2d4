"""Content-addressed, chunked transfer: packages and weights down, updates up.

A blob is cut into chunks that fit every broker (AWS IoT Core takes 128 KiB a message). Each chunk
says which blob it belongs to, its place and its own checksum:

    magic "FDC1" | index | count | blob's size | CRC-32 of the data | SHA-256 of the blob | data
    4 bytes        4       4       8             4                    32                    rest

(big-endian). The receiver keeps what it has, in memory bounded by the size it was promised.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from weakref import WeakValueDictionary

import msgspec

from broker.protocol.messages import BlobRef
from broker.protocol.recent import RecentPayloads
from fedge.errors import WireError

_HEADER = struct.Struct(">4sIIQI32s")
MAGIC = b"FDC1"
HEADER_BYTES = _HEADER.size
#: Data in a chunk: with its header, the topic and the packet's own it stays below 128 KiB.
CHUNK_BYTES = 120 * 1024
#: Smaller chunks are refused: bookkeeping would cost more memory than the blob's size.
MIN_CHUNK_BYTES = 1024


class Chunk(msgspec.Struct, frozen=True):
    """One piece of a blob, with what it says of the whole."""

    ref: BlobRef
    index: int
    data: bytes


def chunk_bytes_for(max_payload_bytes: int) -> int:
    """Data bytes a chunk may have where payloads are limited."""
    return max(MIN_CHUNK_BYTES, min(CHUNK_BYTES, max_payload_bytes - HEADER_BYTES))


def describe(blob: bytes, chunk_bytes: int = CHUNK_BYTES) -> BlobRef:
    """The reference that others need to fetch `blob` (which must not be empty)."""
    count = -(-len(blob) // chunk_bytes)
    return BlobRef(sha256=hashlib.sha256(blob).hexdigest(), size=len(blob), chunks=count)


def split(blob: bytes, chunk_bytes: int = CHUNK_BYTES) -> tuple[BlobRef, list[bytes]]:
    """The blob's reference and its chunks, ready to publish."""
    ref = describe(blob, chunk_bytes)
    digest = bytes.fromhex(ref.sha256)
    payloads = []
    for index in range(ref.chunks):
        data = blob[index * chunk_bytes : (index + 1) * chunk_bytes]
        header = _HEADER.pack(MAGIC, index, ref.chunks, ref.size, zlib.crc32(data), digest)
        payloads.append(header + data)
    return ref, payloads


def _check_count(ref: BlobRef) -> None:
    if ref.chunks > ref.size // MIN_CHUNK_BYTES + 1:
        raise WireError(f"{ref.chunks} chunks do not fit a blob of {ref.size} bytes")


def parse_chunk(payload: bytes) -> Chunk:
    """The chunk in a payload.

    Raises:
        WireError: not a chunk, or damaged.
    """
    if len(payload) <= HEADER_BYTES:
        raise WireError(f"{len(payload)} bytes are no chunk")
    magic, index, count, size, crc, digest = _HEADER.unpack_from(payload)
    data = payload[HEADER_BYTES:]
    if magic != MAGIC:
        raise WireError(f"chunk starts with {magic!r}, expected {MAGIC!r}")
    ref = BlobRef(sha256=digest.hex(), size=size, chunks=count)
    _check_count(ref)
    if index >= count or len(data) > size:
        raise WireError(f"chunk {index} of {count} does not fit a blob of {size} bytes")
    if zlib.crc32(data) != crc:
        raise WireError(f"chunk {index} of {digest.hex()[:12]} is damaged (CRC-32)")
    return Chunk(ref, index, data)


class _Common:
    """Chunks of one blob that several receivers hold, and the whole once one of them has it."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.whole: bytes | None = None

    def holds(self, parts: Mapping[int, bytes]) -> bool:
        """Whether all these chunks are the common ones."""
        return all(data is self.parts[index] for index, data in parts.items())


class CommonChunks:
    """Chunks that receivers of one process have in common: each is in memory once.

    Every receiver still counts what came to it alone. A blob is kept while a receiver collects it.
    Used on one thread.

    Args:
        recent: parses payloads; one that came to another receiver a moment ago is parsed already.
            None: every payload is parsed.
    """

    def __init__(self, recent: RecentPayloads | None = None) -> None:
        self._blobs: WeakValueDictionary[BlobRef, _Common] = WeakValueDictionary()
        self._recent = recent

    def parse(self, payload: bytes) -> Chunk:
        """Returns the chunk in a payload; see `parse_chunk`."""
        if self._recent is None:
            return parse_chunk(payload)
        return self._recent.decoded(payload, parse_chunk)

    def of(self, ref: BlobRef) -> _Common:
        """Returns what the receivers of a blob share."""
        common = self._blobs.get(ref)
        if common is None:
            common = self._blobs[ref] = _Common()
        return common


class BlobReceiver:
    """Collects the chunks of one blob, in any order.

    Memory: about the blob's size, which was checked against the limit before the first byte.

    Args:
        ref: of the blob.
        max_bytes: limit of its size.
        common: of receivers that share their memory; None: it has its own.

    Raises:
        WireError: the blob is larger than `max_bytes`, or its chunks are too small to keep book of.
    """

    def __init__(self, ref: BlobRef, max_bytes: int, common: CommonChunks | None = None) -> None:
        if ref.size > max_bytes:
            raise WireError(f"blob {ref.sha256[:12]} has {ref.size} bytes, limit {max_bytes}")
        _check_count(ref)
        self.ref = ref
        self._parts: dict[int, bytes] = {}
        self._held = 0
        self._common = None if common is None else common.of(ref)

    @property
    def missing(self) -> int:
        """Number of chunks still to come."""
        return self.ref.chunks - len(self._parts)

    def missing_indexes(self) -> list[int]:
        """The chunks still to come, ascending."""
        return [index for index in range(self.ref.chunks) if index not in self._parts]

    def holds(self, index: int) -> bool:
        """Whether this chunk is here."""
        return index in self._parts

    def add(self, chunk: Chunk) -> bytes | None:
        """Take a chunk; the whole blob once it is complete and its digest is right.

        Raises:
            WireError: the chunk is of another blob, or the whole has the wrong length or digest
                (then everything is forgotten and can be fetched again).
        """
        if chunk.ref != self.ref:
            raise WireError(f"chunk of {chunk.ref} while receiving {self.ref}")
        parts = self._parts
        if chunk.index in parts:
            return None
        if self._held + len(chunk.data) > self.ref.size:
            raise WireError(f"blob {self.ref.sha256[:12]} is longer than its {self.ref.size} bytes")
        parts[chunk.index] = chunk.data if self._common is None else self._shared(chunk)
        self._held += len(chunk.data)
        return self._whole() if len(parts) == self.ref.chunks else None

    def _shared(self, chunk: Chunk) -> bytes:
        """Returns the chunk's data, as another receiver holds it already if one does."""
        if self._common is None:
            return chunk.data
        known = self._common.parts.setdefault(chunk.index, chunk.data)
        return known if known == chunk.data else chunk.data  # that one may be forged

    def _whole(self) -> bytes:
        """Returns the blob, and frees the chunks.

        Raises:
            WireError: wrong length or digest.
        """
        parts, self._parts, self._held = self._parts, {}, 0
        common = self._common
        if common is not None and common.whole is not None and common.holds(parts):
            return common.whole
        blob = b"".join([parts[index] for index in range(self.ref.chunks)])
        if len(blob) != self.ref.size or hashlib.sha256(blob).hexdigest() != self.ref.sha256:
            raise WireError(f"blob {self.ref.sha256[:12]} has the wrong digest")
        if common is not None and common.holds(parts):
            common.whole = blob
        return blob
