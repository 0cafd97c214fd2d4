"""Encoding and decoding of a whole cohort's vectors, equal to one by one.

A codec that has `encode_many` and `decode_many` is asked at once; any other one vector by vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedge.errors import CodecError
from learning.codecs.codec import Codec
from learning.vector.parameters import F32

Bytes = NDArray[np.uint8]
#: Payload of each vector: rows of one array where all have the same length.
Payloads = Bytes | Sequence[bytes]
#: The generator of a vector by its number; good until the next is asked for.
RngOf = Callable[[int], np.random.Generator]


@runtime_checkable
class ManyCodec(Protocol):
    """A codec that takes a cohort at once."""

    def encode_many(self, vectors: F32, seeds: Sequence[int], rng_of: RngOf) -> Payloads:
        """Returns the payloads of float32 [n, P], the same bytes as `Codec.encode` of each.

        Raises:
            CodecError: as `Codec.encode`, for any of them.
        """

    def decode_many(self, payloads: Payloads, size: int, seeds: Sequence[int]) -> F32:
        """Returns float32 [n, P], the same numbers as `Codec.decode` of each.

        Raises:
            CodecError: as `Codec.decode`, for any of them.
        """


def encode_many(codec: Codec, vectors: F32, seeds: Sequence[int], rng_of: RngOf) -> Payloads:
    """Returns the payload of each row of `vectors`, float32, [n, P]; see `Codec.encode`.

    Raises:
        CodecError: one of them cannot be encoded.
    """
    if isinstance(codec, ManyCodec):
        return codec.encode_many(vectors, seeds, rng_of)
    return [
        codec.encode(vector, seed, rng_of(number))
        for number, (vector, seed) in enumerate(zip(vectors, seeds, strict=True))
    ]


def decode_many(codec: Codec, payloads: Payloads, size: int, seeds: Sequence[int]) -> F32:
    """Returns the vectors of `payloads`, float32, [n, size]; see `Codec.decode`.

    Raises:
        CodecError: one of them is malformed.
    """
    if isinstance(codec, ManyCodec):
        return codec.decode_many(payloads, size, seeds)
    vectors = np.empty((len(payloads), size), np.float32)
    for vector, payload, seed in zip(vectors, payloads, seeds, strict=True):
        vector[:] = codec.decode(_buffer(payload), size, seed)
    return vectors


class CommonRng:
    """`RngOf` whose vectors all draw from one generator, one behind the other.

    Args:
        rng: of all of them.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __call__(self, number: int) -> np.random.Generator:
        """Returns the generator."""
        return self.rng


def draw_rows(rows: F32, rng_of: RngOf, first: int = 0) -> None:
    """Fills rows of float32 [n, P] with numbers of [0, 1), each by the generator of its vector.

    Args:
        rows: filled.
        rng_of: generators of the vectors.
        first: number of the vector that has the first row.
    """
    if isinstance(rng_of, CommonRng) and rows.flags.c_contiguous:
        rng_of.rng.random(out=rows, dtype=np.float32)
        return
    for number, row in enumerate(rows, first):
        rng_of(number).random(out=row, dtype=np.float32)


def payload_rows(payloads: Payloads, length: int, size: int) -> Bytes:
    """Returns payloads of one length as uint8, [n, length], for a codec's `decode_many`.

    Raises:
        CodecError: one of them has another length.
    """
    if isinstance(payloads, np.ndarray):
        found = payloads.shape[1]
    else:
        lengths = {len(payload) for payload in payloads}
        found = next(iter(lengths - {length}), length)
    if found != length:
        raise CodecError(f"payload of {found} bytes, {size} values take {length}")
    if isinstance(payloads, np.ndarray):
        return payloads
    return np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), length)


def check_vectors(vectors: F32) -> None:
    """Raises CodecError unless `vectors` is float32, two-dimensional and finite."""
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise CodecError(
            f"cannot encode {vectors.dtype} of shape {vectors.shape}, expected float32 of (n, P)"
        )
    if not np.isfinite(vectors).all():
        raise CodecError("NaN or inf in one of the vectors, nothing to send")


def _buffer(payload: Any) -> bytes | memoryview:
    return payload.data if isinstance(payload, np.ndarray) else payload
