"""Symmetric int8 with stochastic rounding: one float32 scale per block of values.

On the wire: ceil(P / block_size) scales (float32, little-endian), then P levels (int8). The value
is level × its block's scale; levels run from -127 to 127, so zero is exact and signs are alike.

Rounding up or down at random, in proportion to the distance, makes the decoded value right on
average, so the errors of a cohort cancel instead of adding up (Alistarh et al. 2017, "QSGD",
arXiv 1610.02132, section 3.1, with the largest value of a block in place of the norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedge.errors import CodecError
from learning.codecs.codec import check_length, check_vector
from learning.codecs.many import Payloads, RngOf, check_vectors, draw_rows, payload_rows
from learning.registry import Settings
from learning.vector.parameters import F32

_LEVELS = 127
#: Numbers rounded at a time: with their draws and levels they stay in a core's second-level cache.
_CACHED = 32_768
#: Beyond this a block is nearly a whole layer and one outlier coarsens all of it.
MAX_BLOCK_SIZE = 1 << 20
_WIRE_SCALE = np.dtype("<f4")
_FLOAT32 = np.finfo(np.float32)
#: The smallest scale but zero. Dividing by a subnormal one would lose the precision that
#: unbiased rounding needs (and some Arm units take subnormals for zero).
MIN_SCALE = _FLOAT32.tiny
#: The largest scale whose level 127 is still finite.
MAX_SCALE = np.nextafter(np.float32(_FLOAT32.max / _LEVELS), np.float32(0))
_MAX_SCALE_BITS = MAX_SCALE.view(np.uint32)


class Int8Settings(Settings, frozen=True, tag="int8"):
    """Settings of int8.

    Attributes:
        block_size: parameters that share one scale. 4 bytes of scale per 1,024 values make
            25.1 % of float32. Smaller blocks follow the values' spread more closely and cost
            more: 256 make 25.4 %, 128 make 25.8 %.
    """

    block_size: Annotated[int, Meta(ge=1, le=MAX_BLOCK_SIZE)] = 1024


class Int8Codec:
    """One byte per parameter and four per block.

    A decoded value is off by at most its block's scale, max|x| / 127 (plus float32 rounding,
    below scale / 30,000), and by nothing on average. Blocks of zeros have scale 0 and stay
    exact; a block whose max|x| is below 1.5e-36 has the scale 1.2e-38.
    """

    unbiased = True

    settings_type: ClassVar[type[Settings]] = Int8Settings

    def __init__(self, settings: Int8Settings) -> None:
        self.block_size = settings.block_size

    def encode(self, vector: F32, seed: int, rng: np.random.Generator) -> bytes:
        """Scales, then levels; see `Codec.encode`. Memory: about four float32 copies."""
        del seed  # no rotation
        check_vector(vector)
        blocks = self._blocks(vector)
        scales = _scales(blocks)
        blocks /= np.where(scales > 0, scales, np.float32(1))[:, None]
        levels = _round(blocks.reshape(-1)[: vector.size], rng)
        return scales.astype(_WIRE_SCALE, copy=False).tobytes() + levels.tobytes()

    def decode(self, data: bytes | memoryview, size: int, seed: int) -> F32:
        """Level × scale; see `Codec.decode`."""
        del seed
        check_length(data, self.max_bytes(size), size)
        count = self._block_count(size)
        scales = np.frombuffer(data, _WIRE_SCALE, count)
        levels = np.frombuffer(data, np.int8, size, count * _WIRE_SCALE.itemsize)
        _check_scales(scales)
        _check_levels(levels)
        vector = levels.astype(np.float32)
        full = size // self.block_size  # the last block may be shorter
        cut = full * self.block_size
        if full:
            vector[:cut].reshape(full, self.block_size)[...] *= scales[:full, None]
        vector[cut:] *= scales[full:]
        return vector

    def encode_many(self, vectors: F32, seeds: Sequence[int], rng_of: RngOf) -> Payloads:
        """See `learning.codecs.many.ManyCodec`."""
        del seeds
        check_vectors(vectors)
        count, size = vectors.shape
        scales = np.empty((count, self._block_count(size)), np.float32)
        levels = np.empty((count, size), np.float32)
        for number in range(scales.shape[1]):
            part = slice(number * self.block_size, (number + 1) * self.block_size)
            scales[:, number] = found = _scales(vectors[:, part])
            divisors = np.where(found > 0, found, np.float32(1))[:, None]
            np.divide(vectors[:, part], divisors, out=levels[:, part])
        wire = scales.astype(_WIRE_SCALE, copy=False).view(np.uint8)
        payloads = np.empty((count, wire.shape[1] + size), np.uint8)
        payloads[:, : wire.shape[1]] = wire
        _round_many(levels, rng_of, payloads[:, wire.shape[1] :].view(np.int8))
        return payloads

    def decode_many(self, payloads: Payloads, size: int, seeds: Sequence[int]) -> F32:
        """See `learning.codecs.many.ManyCodec`."""
        del seeds
        rows = payload_rows(payloads, self.max_bytes(size), size)
        cut = _WIRE_SCALE.itemsize * self._block_count(size)
        scales = np.ascontiguousarray(rows[:, :cut]).view(_WIRE_SCALE).astype(np.float32)
        levels = rows[:, cut:].view(np.int8)
        _check_scales(scales)
        _check_levels(levels)
        vectors = levels.astype(np.float32)
        for number in range(scales.shape[1]):
            part = slice(number * self.block_size, (number + 1) * self.block_size)
            vectors[:, part] *= scales[:, number, None]
        return vectors

    def max_bytes(self, size: int) -> int:
        """Size + 4 × ceil(size / block_size): 25.1 % of float32 with blocks of 1,024."""
        return size + _WIRE_SCALE.itemsize * self._block_count(size)

    def _block_count(self, size: int) -> int:
        return -(-size // self.block_size)

    def _blocks(self, vector: F32) -> F32:
        """A copy of shape (blocks, block_size), padded with zeros."""
        padded = np.zeros(self._block_count(vector.size) * self.block_size, np.float32)
        padded[: vector.size] = vector
        return padded.reshape(-1, self.block_size)


def _scales(blocks: F32) -> F32:
    peaks = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    scales: F32 = np.clip(peaks / np.float32(_LEVELS), MIN_SCALE, MAX_SCALE)
    scales[peaks == 0] = 0
    return scales


def _round(levels: F32, rng: np.random.Generator) -> NDArray[np.int8]:
    """Up with the probability of the fractional part; whole levels never move. Changes `levels`."""
    return _rounded(levels, rng.random(levels.size, dtype=np.float32))


def _round_many(levels: F32, rng_of: RngOf, out: NDArray[np.int8]) -> None:
    """Rounds rows as `_round` does each, a few at a time: they stay in a core's cache."""
    count, size = levels.shape
    several = max(1, _CACHED // max(1, size))
    draws = np.empty((min(several, count), size), np.float32)
    for start in range(0, count, several):
        part = levels[start : start + several]
        own = draws[: len(part)]
        draw_rows(own, rng_of, start)
        out[start : start + several] = _rounded(part, own)


def _rounded(levels: F32, draws: F32) -> NDArray[np.int8]:
    """Up where the draw is below the fractional part. Changes `levels`."""
    # x / scale may come out a hair beyond 127 because the scale itself was rounded.
    np.clip(levels, -_LEVELS, _LEVELS, out=levels)
    low = np.floor(levels)
    levels -= low
    rounded = low.astype(np.int8)
    rounded += (draws < levels).view(np.int8)
    return rounded


def _check_levels(levels: NDArray[np.int8]) -> None:
    if b"\x80" in levels.tobytes():  # a quick search, also of a short vector
        raise CodecError(f"payload holds the level -128, limit -{_LEVELS}")


def _check_scales(scales: F32) -> None:
    # As unsigned integers, floats below zero, infinite ones and NaN are beyond the largest scale.
    bits = scales.astype(np.float32, copy=False).view(np.uint32)
    if np.maximum.reduce(bits, axis=None, initial=0) > _MAX_SCALE_BITS:  # `max`, in half the time
        bad = float(scales[bits > _MAX_SCALE_BITS][0])
        raise CodecError(f"payload holds the scale {bad:g}, range 0 to {float(MAX_SCALE):g}")
