"""float32 and float16: one IEEE 754 number per parameter, little-endian, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fedge.errors import CodecError
from learning.codecs.codec import check_length, check_vector
from learning.codecs.many import Payloads, RngOf, check_vectors, payload_rows
from learning.registry import Settings
from learning.vector.parameters import F32, is_finite

#: Largest finite float16 (IEEE 754 binary16).
FLOAT16_MAX = 65_504.0

_WIRE_32 = np.dtype("<f4")
_WIRE_16 = np.dtype("<f2")


class Float32Settings(Settings, frozen=True, tag="float32"):
    """float32 has none."""


class Float32Codec:
    """The vector itself: 4 bytes per parameter, lossless."""

    unbiased = True
    lossless = True

    settings_type: ClassVar[type[Settings]] = Float32Settings

    def __init__(self, settings: Float32Settings) -> None:
        del settings

    def encode(self, vector: F32, seed: int, rng: np.random.Generator) -> bytes:
        """4 bytes per value; see `Codec.encode`."""
        del seed, rng  # exact, nothing is rounded
        check_vector(vector)
        return vector.astype(_WIRE_32, copy=False).tobytes()

    def decode(self, data: bytes | memoryview, size: int, seed: int) -> F32:
        """The same vector, bit for bit; see `Codec.decode`."""
        del seed
        return _decode(data, size, _WIRE_32)

    def encode_many(self, vectors: F32, seeds: Sequence[int], rng_of: RngOf) -> Payloads:
        """See `learning.codecs.many.ManyCodec`."""
        del seeds, rng_of
        check_vectors(vectors)
        return _rows(vectors, _WIRE_32)

    def decode_many(self, payloads: Payloads, size: int, seeds: Sequence[int]) -> F32:
        """See `learning.codecs.many.ManyCodec`."""
        del seeds
        return _decode_many(payloads, size, _WIRE_32)

    def max_bytes(self, size: int) -> int:
        """4 × size."""
        return _WIRE_32.itemsize * size


class Float16Settings(Settings, frozen=True, tag="float16"):
    """float16 has none."""


class Float16Codec:
    """IEEE 754 half precision, rounded to nearest: 2 bytes per parameter.

    Off by at most |x| / 2,048, or 3e-8 where |x| is below 6.1e-5 (float16's subnormals).
    """

    unbiased = False

    settings_type: ClassVar[type[Settings]] = Float16Settings

    def __init__(self, settings: Float16Settings) -> None:
        del settings

    def encode(self, vector: F32, seed: int, rng: np.random.Generator) -> bytes:
        """2 bytes per value; see `Codec.encode`.

        Raises:
            CodecError: also for a value beyond ±65,504, which would arrive as inf.
        """
        del seed, rng  # rounding to nearest needs none
        check_vector(vector)
        _check_range(vector)
        return vector.astype(_WIRE_16).tobytes()

    def decode(self, data: bytes | memoryview, size: int, seed: int) -> F32:
        """The vector after rounding; see `Codec.decode`."""
        del seed
        return _decode(data, size, _WIRE_16)

    def encode_many(self, vectors: F32, seeds: Sequence[int], rng_of: RngOf) -> Payloads:
        """See `learning.codecs.many.ManyCodec`."""
        del seeds, rng_of
        check_vectors(vectors)
        _check_range(vectors)
        return _rows(vectors, _WIRE_16)

    def decode_many(self, payloads: Payloads, size: int, seeds: Sequence[int]) -> F32:
        """See `learning.codecs.many.ManyCodec`."""
        del seeds
        return _decode_many(payloads, size, _WIRE_16)

    def max_bytes(self, size: int) -> int:
        """2 × size."""
        return _WIRE_16.itemsize * size


def _check_range(values: F32) -> None:
    peak = float(np.abs(values).max(initial=0.0))
    if peak > FLOAT16_MAX:
        raise CodecError(f"largest value {peak:g} does not fit float16, limit {FLOAT16_MAX:g}")


def _rows(vectors: F32, wire: np.dtype[Any]) -> Payloads:
    numbers = np.ascontiguousarray(vectors, wire)
    return numbers.view(np.uint8).reshape(len(vectors), wire.itemsize * vectors.shape[1])


def _decode_many(payloads: Payloads, size: int, wire: np.dtype[Any]) -> F32:
    rows = payload_rows(payloads, wire.itemsize * size, size)
    vectors = np.ascontiguousarray(rows).view(wire).reshape(len(rows), size).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise CodecError("payload holds NaN or inf")
    return vectors


def _decode(data: bytes | memoryview, size: int, wire: np.dtype[Any]) -> F32:
    check_length(data, wire.itemsize * size, size)
    vector = np.frombuffer(data, wire).astype(np.float32)
    if not is_finite(vector):
        raise CodecError("payload holds NaN or inf")
    return vector
