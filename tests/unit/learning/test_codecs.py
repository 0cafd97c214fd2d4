"""Promises of float32, float16 and int8 beyond those of every codec."""

from __future__ import annotations

import numpy as np
import pytest

from fedge.errors import CodecError, ConfigError
from learning.codecs.codec import Codec
from learning.codecs.floats import FLOAT16_MAX
from learning.codecs.int8 import MAX_SCALE, MIN_SCALE
from learning.codecs.registry import CODECS
from learning.vector.parameters import F32

SEED = 7
FLOAT32_MAX = float(np.finfo(np.float32).max)


def rng() -> np.random.Generator:
    return np.random.default_rng(42)


def round_trip(codec: Codec, vector: F32) -> F32:
    return codec.decode(codec.encode(vector, SEED, rng()), vector.size, SEED)


@pytest.mark.parametrize("block_size", [0, -1, (1 << 20) + 1])
def test_a_block_size_out_of_range_is_refused(block_size: int) -> None:
    with pytest.raises(ConfigError, match=r"codec\.block_size: expected a whole number [<>]= \d+"):
        CODECS.make({"name": "int8", "block_size": block_size})


def test_float32_is_exact_to_the_bit() -> None:
    vector = np.array([-0.0, 1e-45, FLOAT32_MAX, np.pi], np.float32)
    assert round_trip(CODECS.make("float32"), vector).tobytes() == vector.tobytes()


@pytest.mark.parametrize("value", [65_505.0, -70_000.0, 1e30])
def test_float16_refuses_what_would_become_inf(value: float) -> None:
    with pytest.raises(CodecError, match="does not fit float16, limit 65504"):
        CODECS.make("float16").encode(np.array([1.0, value], np.float32), SEED, rng())


def test_float16_carries_its_largest_number() -> None:
    vector = np.array([FLOAT16_MAX, -FLOAT16_MAX], np.float32)
    assert np.array_equal(round_trip(CODECS.make("float16"), vector), vector)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_floats_refuse_a_payload_with_inf(name: str) -> None:
    payload = np.array([1, np.inf], "<f4" if name == "float32" else "<f2").tobytes()
    with pytest.raises(CodecError, match="payload holds NaN or inf"):
        CODECS.make(name).decode(payload, 2, SEED)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -1e-45, 3e36])
def test_int8_refuses_a_scale_no_encoder_writes(scale: float) -> None:
    payload = np.array([1.0, scale], "<f4").tobytes() + bytes(5)
    with pytest.raises(CodecError, match="payload holds the scale"):
        CODECS.make({"name": "int8", "block_size": 4}).decode(payload, 5, SEED)


def test_int8_refuses_a_signalling_nan_as_quietly_as_other_scales() -> None:
    payload = np.array([0x3F80_0000, 0x7F81_0000], "<u4").tobytes() + bytes(5)
    with pytest.raises(CodecError, match="payload holds the scale nan"):
        CODECS.make({"name": "int8", "block_size": 4}).decode(payload, 5, SEED)


def test_int8_refuses_the_level_that_has_no_positive_twin() -> None:
    payload = np.array([1.0], "<f4").tobytes() + np.array([3, -128], np.int8).tobytes()
    with pytest.raises(CodecError, match="level -128"):
        CODECS.make("int8").decode(payload, 2, SEED)


def test_int8_carries_the_largest_and_smallest_numbers() -> None:
    codec = CODECS.make({"name": "int8", "block_size": 2})
    largest = np.array([FLOAT32_MAX, -FLOAT32_MAX], np.float32)
    np.testing.assert_allclose(round_trip(codec, largest), largest, rtol=1e-6)
    payload = codec.encode(np.array([1e-45, 0], np.float32), SEED, rng())
    assert np.frombuffer(payload, "<f4", 1)[0] == MIN_SCALE
    assert np.isfinite(np.float32(127) * MAX_SCALE)


def test_int8_is_right_on_average_below_its_smallest_scale() -> None:
    # A level is 2**-126; a value of a quarter of it must come out as one level every fourth time.
    codec, source = CODECS.make("int8"), rng()
    vector = np.full(4096, 2.0**-128, np.float32)
    decoded = codec.decode(codec.encode(vector, SEED, source), 4096, SEED)
    assert np.count_nonzero(decoded) == pytest.approx(1024, abs=5 * np.sqrt(4096 * 3 / 16))


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.97])
def test_int8_rounds_up_as_often_as_the_value_is_near(fraction: float) -> None:
    count = 1_000_000
    vector = np.full(count + 1, 5 + fraction, np.float32)
    vector[-1] = 127  # makes the scale 1
    codec = CODECS.make({"name": "int8", "block_size": 1 << 20})
    decoded = round_trip(codec, vector)[:-1]
    assert set(decoded) == {5, 6}
    standard_error = np.sqrt(fraction * (1 - fraction) / count)
    assert decoded.mean(dtype=np.float64) == pytest.approx(5 + fraction, abs=5 * standard_error)


def test_int8_never_rounds_its_peak_up_to_level_128() -> None:
    # The float32 scale of this peak is a hair low, so that peak / scale is 127 + 2**-17: without
    # care about 15 of these 2,000,000 would become 128, which wraps to -128.
    peak = np.float32(0.5165277)
    assert peak / (peak / np.float32(127)) > 127
    vector = np.full(2_000_000, peak)
    np.testing.assert_allclose(round_trip(CODECS.make("int8"), vector), vector, rtol=1e-6)


@pytest.mark.parametrize("size", [50_000, 250_000, 1_000_000])
def test_int8_takes_at_most_25_5_percent_of_float32(size: int) -> None:
    assert CODECS.make("int8").max_bytes(size) <= 0.255 * 4 * size


@pytest.mark.parametrize(
    ("name", "expected"), [("float32", 8000), ("float16", 4000), ("int8", 2008)]
)
def test_a_payload_of_2000_values_has_this_length(name: str, expected: int) -> None:
    codec = CODECS.make(name)  # int8: 2 blocks of 4 bytes and 2,000 levels
    payload = codec.encode(np.ones(2000, np.float32), SEED, rng())
    assert codec.max_bytes(2000) == len(payload) == expected


def test_float16_rounds_to_nearest_and_so_is_not_unbiased() -> None:
    vector = np.array([1 + 2**-12], np.float32)  # a quarter of the way to the next float16
    codec = CODECS.make("float16")
    assert not codec.unbiased
    for seed in range(10):
        assert codec.decode(codec.encode(vector, seed, rng()), 1, seed)[0] == 1
