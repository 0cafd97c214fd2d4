"""Suites over every registered codec: what any of them must do, and what unbiased ones must."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedge.errors import CodecError, ConfigError
from learning.codecs.codec import Codec, is_lossless
from learning.codecs.feedback import encode_many_with_feedback, encode_with_feedback
from learning.codecs.floats import FLOAT16_MAX
from learning.codecs.int8 import MIN_SCALE
from learning.codecs.many import decode_many, encode_many
from learning.codecs.registry import CODECS
from learning.registry import Choice
from learning.vector.parameters import F32, F64

BLOCK = 8  # small, so that a few values span several blocks
SEED = 7
FLOAT32_MAX = float(np.finfo(np.float32).max)
#: Settings with which a few values show what a codec does.
SMALL: dict[str, Choice] = {"int8": {"name": "int8", "block_size": BLOCK}}


def make(name: str) -> Codec:
    return CODECS.make(SMALL.get(name, name))


UNBIASED = [name for name in CODECS if make(name).unbiased]

every_codec = pytest.mark.parametrize("name", list(CODECS))
every_unbiased_codec = pytest.mark.parametrize("name", UNBIASED)
every_size = pytest.mark.parametrize(
    "size", [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 3, 1000]
)


def rng() -> np.random.Generator:
    return np.random.default_rng(42)


def sample(size: int, scale: float = 1.0) -> F32:
    return rng().normal(0, scale, size).astype(np.float32)


def round_trip(codec: Codec, vector: F32) -> F32:
    return codec.decode(codec.encode(vector, SEED, rng()), vector.size, SEED)


def no_error(vector: F32) -> F64:
    return np.zeros(vector.size)


def float16_error(vector: F32) -> F64:
    return np.maximum(np.abs(vector.astype(np.float64)) / 2048, 2.0**-25)


def int8_error(vector: F32) -> F64:
    """One scale of each value's block, and float32 rounding."""
    bound = np.zeros(vector.size)
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK].astype(np.float64)
        peak = float(np.abs(block).max())
        scale = max(peak / 127, float(MIN_SCALE)) if peak else 0.0
        bound[start : start + BLOCK] = scale * (1 + 2**-14)
    return bound


ERROR_BOUNDS: dict[str, Callable[[F32], F64]] = {
    "float32": no_error,
    "float16": float16_error,
    "int8": int8_error,
}


def error_bound(name: str, vector: F32) -> F64:
    """A codec from elsewhere says its own, in a method of this name."""
    bound = ERROR_BOUNDS.get(name) or getattr(make(name), "error_bound", None)
    if bound is None:
        pytest.skip(f"codec {name} has no method error_bound(vector)")
    found: F64 = bound(vector)
    return found


def shipped() -> set[str]:
    return {name for name in CODECS if CODECS[name].__module__.startswith("learning.")}


def assert_within_bound(name: str, vector: F32) -> None:
    decoded = round_trip(make(name), vector)
    assert decoded.dtype == np.float32
    assert decoded.shape == vector.shape
    error = np.abs(decoded.astype(np.float64) - vector.astype(np.float64))
    assert (error <= error_bound(name, vector)).all()


def test_every_codec_has_an_error_bound_here() -> None:
    assert set(ERROR_BOUNDS) == shipped()


@every_codec
@every_size
def test_a_round_trip_stays_within_the_documented_error(name: str, size: int) -> None:
    for scale in (1.0, 1e-3, 1e3, 1e-30):
        assert_within_bound(name, sample(size, scale))


@every_codec
@every_size
def test_a_payload_is_no_longer_than_announced(name: str, size: int) -> None:
    codec = make(name)
    assert len(codec.encode(sample(size), SEED, rng())) <= codec.max_bytes(size)


@every_codec
@every_size
def test_zeros_stay_zeros(name: str, size: int) -> None:
    assert not round_trip(make(name), np.zeros(size, np.float32)).any()


@every_codec
def test_a_block_of_zeros_beside_others_stays_zero(name: str) -> None:
    vector = np.concatenate([sample(BLOCK), np.zeros(BLOCK, np.float32), sample(3)])
    decoded = round_trip(make(name), vector)
    assert not decoded[BLOCK : 2 * BLOCK].any()
    assert_within_bound(name, vector)


@every_codec
@pytest.mark.parametrize("value", [1.5, -1.5, 1e-4, 60000.0, 1e-40, -1e-45])
def test_one_element(name: str, value: float) -> None:
    assert_within_bound(name, np.array([value], np.float32))


@every_codec
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK, -1])
def test_nan_and_inf_are_not_sent(name: str, value: float, place: int) -> None:
    vector = sample(2 * BLOCK + 3)
    vector[place] = value
    with pytest.raises(CodecError, match="NaN or inf in 1 of 19"):
        make(name).encode(vector, SEED, rng())


@every_codec
def test_only_float32_vectors_are_sent(name: str) -> None:
    codec = make(name)
    with pytest.raises(CodecError, match="float64"):
        codec.encode(np.zeros(3), SEED, rng())  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"\(2, 2\)"):
        codec.encode(np.zeros((2, 2), np.float32), SEED, rng())


@every_codec
@every_size
def test_truncated_and_extended_payloads_are_refused(name: str, size: int) -> None:
    codec = make(name)
    payload = codec.encode(sample(size), SEED, rng())
    for wrong in (payload[:-1], payload[1:-1], payload + b"\0", b"" if size else b"\0"):
        if len(wrong) != len(payload):
            with pytest.raises(CodecError, match=f"payload of {len(wrong)} bytes"):
                codec.decode(wrong, size, SEED)


@every_codec
def test_a_wrong_length_is_refused_before_memory_is_taken(name: str) -> None:
    with pytest.raises(CodecError, match="payload of 3 bytes"):
        make(name).decode(b"abc", 10**15, SEED)  # a petabyte, if it were allocated


@every_codec
def test_a_payload_may_be_an_unaligned_view(name: str) -> None:
    codec = make(name)
    vector = sample(2 * BLOCK + 1)
    payload = codec.encode(vector, SEED, rng())
    view = memoryview(b"x" + payload)[1:]
    expected = codec.decode(payload, vector.size, SEED)
    assert np.array_equal(codec.decode(view, vector.size, SEED), expected)


@every_codec
def test_a_decoded_vector_is_the_callers_own(name: str) -> None:
    codec = make(name)
    payload = codec.encode(sample(BLOCK), SEED, rng())
    first = codec.decode(payload, BLOCK, SEED)
    first[:] = 7
    assert not np.array_equal(codec.decode(payload, BLOCK, SEED), first)


@every_codec
def test_encoding_leaves_the_vector_alone_even_when_read_only(name: str) -> None:
    vector = sample(2 * BLOCK + 1)
    vector.setflags(write=False)
    before = vector.copy()
    make(name).encode(vector, SEED, rng())
    assert np.array_equal(vector, before)


@every_codec
def test_the_same_random_state_gives_the_same_bytes(name: str) -> None:
    codec = make(name)
    vector = sample(100)
    assert codec.encode(vector, SEED, rng()) == codec.encode(vector, SEED, rng())


@every_codec
@given(data=st.data())
def test_any_finite_vector_survives(name: str, data: st.DataObject) -> None:
    peak = FLOAT16_MAX if name == "float16" else FLOAT32_MAX
    elements = st.floats(-peak, peak, width=32)
    vector = data.draw(hnp.arrays(np.float32, st.integers(0, 3 * BLOCK + 1), elements=elements))
    assert_within_bound(name, vector)


@every_codec
@given(data=st.binary(max_size=80), size=st.integers(0, 80))
def test_arbitrary_bytes_decode_to_finite_values_or_a_codec_error(
    name: str, data: bytes, size: int
) -> None:
    try:
        decoded = make(name).decode(data, size, SEED)
    except CodecError:
        return
    assert decoded.shape == (size,)
    assert np.isfinite(decoded).all()


@every_codec
@given(data=st.data())
def test_bytes_of_the_right_length_decode_to_finite_values_or_a_codec_error(
    name: str, data: st.DataObject
) -> None:
    codec = make(name)
    size = data.draw(st.integers(0, 2 * BLOCK + 1))
    length = codec.max_bytes(size)
    payload = data.draw(st.binary(min_size=length, max_size=length))
    try:
        decoded = codec.decode(payload, size, SEED)
    except CodecError as error:
        assert "payload holds" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert np.isfinite(decoded).all()


def test_an_unknown_codec_is_named_with_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown codec 'int7'; did you mean int8\? known: float"
    ):
        CODECS.make("int7")


# --- unbiased codecs ------------------------------------------------------------------------------


def mean_error(codec: Codec, vector: F32, draws: int) -> F64:
    """Returns the mean of many decodings, each of a random state and a seed of its own."""
    source, total = rng(), np.zeros(vector.size)
    for seed in range(draws):
        total += codec.decode(codec.encode(vector, seed, source), vector.size, seed)
    error: F64 = np.abs(total / draws - vector)
    return error


@every_unbiased_codec
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_decoding_is_right_on_average(name: str, scale: float) -> None:
    # 4,000 draws: the standard error is at most bound / 2 / sqrt(4000) = 0.8 % of the error's
    # bound; the limit is 5 of those. Values sit anywhere between two levels.
    draws, vector = 4000, sample(3 * BLOCK, scale)
    standard_error = error_bound(name, vector) / 2 / np.sqrt(draws)
    assert (mean_error(make(name), vector, draws) <= 5 * standard_error + 1e-12 * scale).all()


@every_unbiased_codec
def test_the_errors_of_a_cohort_cancel(name: str) -> None:
    # Over n agents the error of the mean falls as 1 / sqrt(n): of 1,600 it is a fifth of 64's.
    vector = sample(125 * BLOCK)
    few, many = (float(mean_error(make(name), vector, draws).mean()) for draws in (64, 1600))
    assert many <= 0.25 * few + 1e-12


# --- error feedback over every codec --------------------------------------------------------------


@every_codec
def test_what_a_payload_lost_is_the_residual(name: str) -> None:
    codec, delta, old = make(name), sample(20), sample(20, 0.01)[::-1].copy()
    encoded = encode_with_feedback(codec, delta, old, SEED, rng())
    arrived = codec.decode(encoded.payload, 20, SEED)
    assert np.array_equal(encoded.decoded, arrived)
    if is_lossless(codec):
        assert np.array_equal(arrived, delta + old)
        assert encoded.residual is None
        return
    assert encoded.residual is not None
    assert np.array_equal(encoded.residual, (delta + old) - arrived)
    assert not encoded.residual.flags.writeable


@every_codec
def test_feedback_delivers_everything_in_the_long_run(name: str) -> None:
    # What has arrived after any number of rounds lags what was wanted by one residual only.
    codec, source = make(name), rng()
    delta, residual, arrived = sample(3 * BLOCK, 0.01), None, np.zeros(3 * BLOCK)
    for _ in range(50):
        encoded = encode_with_feedback(codec, delta, residual, SEED, source)
        arrived += codec.decode(encoded.payload, delta.size, SEED)
        residual = encoded.residual
    if residual is None:
        residual = np.zeros(delta.size, np.float32)
    np.testing.assert_allclose(arrived + residual, 50 * delta.astype(np.float64), atol=1e-6)
    assert (np.abs(residual) <= 1.02 * error_bound(name, delta)).all()


@every_codec
def test_a_residual_of_another_model_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match=r"residual of shape \(3,\) for a vector of \(4,\)"):
        encode_with_feedback(make(name), sample(4), sample(3), SEED, rng())


@every_codec
def test_a_sum_beyond_float32_is_not_sent(name: str) -> None:
    huge = np.full(4, FLOAT32_MAX, np.float32)
    with pytest.raises(CodecError, match="NaN or inf"):
        encode_with_feedback(make(name), huge, huge, SEED, rng())


# --- golden bytes: devices in the field keep sending them, so these never change -----------------

GOLDEN: dict[str, tuple[Choice, list[float], str]] = {
    "float32": (
        "float32",
        [0, 1, -1, 127, -127, 0.5, -0.25, 63.5],
        "00000000 0000803f 000080bf 0000fe42 0000fec2 0000003f 000080be 00007e42",
    ),
    "float16": (
        "float16",
        [0, 1, -1, 127, -127, 0.5, -0.25, 63.5],
        "0000 003c 00bc f057 f0d7 0038 00b4 f053",
    ),
    "int8": (
        {"name": "int8", "block_size": 4},
        [0, 1, -1, 127, -254, 2, 0, 4, 63.5, -0.5],
        "0000803f 00000040 0000003f"  # scales 1, 2 and 0.5
        "00 01 ff 7f  81 01 00 02  7f ff",  # levels 0 1 -1 127, -127 1 0 2, 127 -1
    ),
}


def test_every_codec_has_golden_bytes() -> None:
    assert set(GOLDEN) == shipped()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_payload_has_these_bytes_for_ever(name: str) -> None:
    choice, values, text = GOLDEN[name]
    codec, vector, payload = CODECS.make(choice), np.array(values, np.float32), bytes.fromhex(text)
    for seed in (1, 2):  # these values sit on levels, so the random rounding does not show
        assert codec.encode(vector, seed, np.random.default_rng(seed)) == payload
        assert np.array_equal(codec.decode(payload, vector.size, seed), vector)


def streams(seed: int) -> Callable[[int], np.random.Generator]:
    return lambda number: np.random.default_rng([seed, number])


@every_codec
@every_size
def test_a_cohort_at_once_is_equal_to_one_by_one(name: str, size: int) -> None:
    codec = make(name)
    vectors = np.stack([sample(size), np.zeros(size, np.float32), sample(size, 1e-3)])
    seeds = [SEED, SEED + 1, SEED + 2]

    payloads = encode_many(codec, vectors, seeds, streams(3))
    decoded = decode_many(codec, payloads, size, seeds)

    for number, (vector, seed) in enumerate(zip(vectors, seeds, strict=True)):
        payload = codec.encode(vector, seed, streams(3)(number))
        assert bytes(payloads[number]) == payload
        np.testing.assert_array_equal(decoded[number], codec.decode(payload, size, seed))
    again = decode_many(codec, [bytes(payload) for payload in payloads], size, seeds)
    np.testing.assert_array_equal(again, decoded)


@every_codec
def test_one_vector_that_is_not_finite_stops_a_cohort(name: str) -> None:
    vectors = np.stack([sample(9), np.full(9, np.nan, np.float32)])
    with pytest.raises(CodecError):
        encode_many(make(name), vectors, [1, 2], streams(0))


@every_codec
def test_one_payload_that_is_too_short_stops_a_cohort(name: str) -> None:
    codec = make(name)
    payloads = [
        bytes(p) for p in encode_many(codec, np.ones((2, 9), np.float32), [1, 2], streams(0))
    ]
    with pytest.raises(CodecError):
        decode_many(codec, [payloads[0], payloads[1][:-1]], 9, [1, 2])


@every_codec
def test_feedback_of_a_cohort_is_equal_to_one_by_one(name: str) -> None:
    codec = make(name)
    vectors, residuals = np.stack([sample(30), sample(30, 2.0)]), np.full((2, 30), 0.1, np.float32)
    found = encode_many_with_feedback(codec, vectors, residuals, [1, 2], streams(5))
    for number in range(2):
        one = encode_with_feedback(
            codec, vectors[number], residuals[number], number + 1, streams(5)(number)
        )
        assert bytes(found.payloads[number]) == one.payload
        np.testing.assert_array_equal(found.decoded[number], one.decoded)
        if found.residual is None:
            assert one.residual is None
        else:
            assert one.residual is not None
            np.testing.assert_array_equal(found.residual[number], one.residual)
