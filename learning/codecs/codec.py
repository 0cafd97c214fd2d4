"""What every codec is: a vector in, few bytes out, and back.

A payload holds values only. What is needed to read it (the codec's configuration and the vector's
length) travels once per round in the plan, not in every update.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np

from fedge.errors import CodecError
from learning.vector.parameters import F32

#: Beyond this a block is nearly a whole layer and one outlier coarsens all of it.
MAX_BLOCK_SIZE = 1 << 20


class CodecConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which codec and its settings; sender and receiver must use the same.

    Attributes:
        name: one of `CODECS`.
        block_size: parameters that share one scale (int8 only). 4 bytes of scale per 1,024
            values make 25.1 % of float32. Smaller blocks follow the values' spread more closely
            and cost more: 256 make 25.4 %, 128 make 25.8 %.
    """

    name: str = "int8"
    block_size: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size {self.block_size} is outside 1 to {MAX_BLOCK_SIZE}")


class Codec(Protocol):
    """Vectors to bytes and back. Stateless: one instance serves any number of threads."""

    def encode(self, vector: F32, rng: np.random.Generator) -> bytes:
        """The payload for `vector`.

        Args:
            vector: float32, shape (P,); P may be 0.
            rng: source of the random rounding; codecs that round to nearest ignore it.

        Raises:
            CodecError: not such a vector, NaN or inf in it, or a value the codec cannot hold:
                local training diverged and there is nothing to send.
        """

    def decode(self, data: bytes | memoryview, size: int) -> F32:
        """The vector in `data`: finite, float32, shape (size,), the caller's own to change.

        Raises:
            CodecError: not `encoded_size(size)` bytes (told before anything is allocated), or
                bytes that no encoder writes (NaN, inf, a scale or level out of range).
        """

    def encoded_size(self, size: int) -> int:
        """Bytes that a vector of length `size` takes, always: known before a payload arrives."""


def check_vector(vector: F32) -> None:
    """Raises CodecError unless `vector` is float32, one-dimensional and finite."""
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise CodecError(
            f"cannot encode {vector.dtype} of shape {vector.shape}, expected float32 of (P,)"
        )
    finite = np.isfinite(vector)
    if not finite.all():
        bad = vector.size - int(np.count_nonzero(finite))
        raise CodecError(f"NaN or inf in {bad} of {vector.size} values, nothing to send")


def check_length(data: bytes | memoryview, expected: int, size: int) -> None:
    """Raises CodecError unless `data` has exactly `expected` bytes, those of `size` values."""
    found = memoryview(data).nbytes
    if found != expected:
        raise CodecError(f"payload of {found} bytes, {size} values take {expected}")
