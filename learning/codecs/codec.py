"""Codec: a vector in, few bytes out, and back.

A payload holds values only; the codec's settings and the vector's length travel beside it.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from fedge.errors import CodecError
from learning.registry import Settings
from learning.vector.parameters import F32, is_finite


class Codec(Protocol):
    """Vectors to bytes and back. Stateless: one instance serves any number of threads.

    The constructor takes the settings.

    Optional: `encode_many` and `decode_many`, for a cohort of simulated devices at once
    (`learning.codecs.many`); and `lossless = True`, when the decoded vector is the encoded one, bit
    for bit: there is no error to feed back.

    Attributes:
        unbiased: the decoded vector is right on average over `rng`.
    """

    settings_type: ClassVar[type[Settings]]
    unbiased: ClassVar[bool]

    def encode(self, vector: F32, seed: int, rng: np.random.Generator) -> bytes:
        """Returns the payload for `vector`.

        Args:
            vector: float32, shape (P,); P may be 0.
            seed: of this round and agent, known to both sides: of rotations and positions.
            rng: source of the random rounding; codecs that round to nearest ignore it.

        Raises:
            CodecError: not such a vector, NaN or inf in it, or a value the codec cannot hold:
                local training diverged and there is nothing to send.
        """

    def decode(self, data: bytes | memoryview, size: int, seed: int) -> F32:
        """Returns the vector in `data`: finite, float32, shape (size,), the caller's to change.

        Raises:
            CodecError: a length that no vector of `size` has (told before anything is allocated),
                or bytes that no encoder writes (NaN, inf, a scale or level out of range).
        """

    def max_bytes(self, size: int) -> int:
        """Returns the most bytes that a vector of length `size` takes."""


def check_vector(vector: F32) -> None:
    """Raises CodecError unless `vector` is float32, one-dimensional and finite."""
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise CodecError(
            f"cannot encode {vector.dtype} of shape {vector.shape}, expected float32 of (P,)"
        )
    if not is_finite(vector):
        bad = vector.size - int(np.count_nonzero(np.isfinite(vector)))
        raise CodecError(f"NaN or inf in {bad} of {vector.size} values, nothing to send")


def is_lossless(codec: Codec) -> bool:
    """Returns whether the codec says that it loses nothing."""
    return bool(getattr(codec, "lossless", False))


def check_length(data: bytes | memoryview, expected: int, size: int) -> None:
    """Raises CodecError unless `data` has exactly `expected` bytes, those of `size` values."""
    found = memoryview(data).nbytes
    if found != expected:
        raise CodecError(f"payload of {found} bytes, {size} values take {expected}")
