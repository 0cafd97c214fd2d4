"""One suite over every registered codec: what any of them must do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedge.errors import CodecError, ConfigError
from learning.codecs import CODECS, Codec, CodecConfig, compensate, make_codec
from learning.codecs.floats import FLOAT16_MAX
from learning.codecs.int8 import MAX_SCALE, MIN_SCALE
from learning.vector.parameters import F32, F64

BLOCK = 8  # small, so that a few values span several blocks
CONFIGS = [CodecConfig(name, block_size=BLOCK) for name in CODECS]
FLOAT32_MAX = float(np.finfo(np.float32).max)

every_codec = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
every_size = pytest.mark.parametrize(
    "size", [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 3, 1000]
)


def rng() -> np.random.Generator:
    return np.random.default_rng(42)


def sample(size: int, scale: float = 1.0) -> F32:
    return rng().normal(0, scale, size).astype(np.float32)


def round_trip(codec: Codec, vector: F32) -> F32:
    return codec.decode(codec.encode(vector, rng()), vector.size)


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


def assert_within_bound(config: CodecConfig, vector: F32) -> None:
    decoded = round_trip(make_codec(config), vector)
    assert decoded.dtype == np.float32
    assert decoded.shape == vector.shape
    error = np.abs(decoded.astype(np.float64) - vector.astype(np.float64))
    assert (error <= ERROR_BOUNDS[config.name](vector)).all()


def test_every_codec_has_an_error_bound_here() -> None:
    assert set(ERROR_BOUNDS) == set(CODECS)


@every_codec
@every_size
def test_a_round_trip_stays_within_the_documented_error(config: CodecConfig, size: int) -> None:
    for scale in (1.0, 1e-3, 1e3, 1e-30):
        assert_within_bound(config, sample(size, scale))


@every_codec
@every_size
def test_a_payload_has_the_announced_size(config: CodecConfig, size: int) -> None:
    codec = make_codec(config)
    assert len(codec.encode(sample(size), rng())) == codec.encoded_size(size)


@every_codec
@every_size
def test_zeros_stay_zeros(config: CodecConfig, size: int) -> None:
    assert not round_trip(make_codec(config), np.zeros(size, np.float32)).any()


@every_codec
def test_a_block_of_zeros_beside_others_stays_zero(config: CodecConfig) -> None:
    vector = np.concatenate([sample(BLOCK), np.zeros(BLOCK, np.float32), sample(3)])
    decoded = round_trip(make_codec(config), vector)
    assert not decoded[BLOCK : 2 * BLOCK].any()
    assert_within_bound(config, vector)


@every_codec
@pytest.mark.parametrize("value", [1.5, -1.5, 1e-4, 60000.0, 1e-40, -1e-45])
def test_one_element(config: CodecConfig, value: float) -> None:
    assert_within_bound(config, np.array([value], np.float32))


@every_codec
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK, -1])
def test_nan_and_inf_are_not_sent(config: CodecConfig, value: float, place: int) -> None:
    vector = sample(2 * BLOCK + 3)
    vector[place] = value
    with pytest.raises(CodecError, match="NaN or inf in 1 of 19"):
        make_codec(config).encode(vector, rng())


@every_codec
def test_only_float32_vectors_are_sent(config: CodecConfig) -> None:
    codec = make_codec(config)
    with pytest.raises(CodecError, match="float64"):
        codec.encode(np.zeros(3), rng())  # type: ignore[arg-type]
    with pytest.raises(CodecError, match=r"\(2, 2\)"):
        codec.encode(np.zeros((2, 2), np.float32), rng())


@every_codec
@every_size
def test_truncated_and_extended_payloads_are_refused(config: CodecConfig, size: int) -> None:
    codec = make_codec(config)
    payload = codec.encode(sample(size), rng())
    for wrong in (payload[:-1], payload[1:-1], payload + b"\0", b"" if size else b"\0"):
        if len(wrong) != len(payload):
            with pytest.raises(CodecError, match=f"payload of {len(wrong)} bytes"):
                codec.decode(wrong, size)


@every_codec
def test_a_wrong_length_is_refused_before_memory_is_taken(config: CodecConfig) -> None:
    with pytest.raises(CodecError, match="payload of 3 bytes"):
        make_codec(config).decode(b"abc", 10**15)  # a petabyte, if it were allocated


@every_codec
def test_a_payload_may_be_an_unaligned_view(config: CodecConfig) -> None:
    codec = make_codec(config)
    vector = sample(2 * BLOCK + 1)
    payload = codec.encode(vector, rng())
    view = memoryview(b"x" + payload)[1:]
    assert np.array_equal(codec.decode(view, vector.size), codec.decode(payload, vector.size))


@every_codec
def test_a_decoded_vector_is_the_callers_own(config: CodecConfig) -> None:
    codec = make_codec(config)
    payload = codec.encode(sample(BLOCK), rng())
    first = codec.decode(payload, BLOCK)
    first[:] = 7
    assert not np.array_equal(codec.decode(payload, BLOCK), first)


@every_codec
def test_encoding_leaves_the_vector_alone_even_when_read_only(config: CodecConfig) -> None:
    vector = sample(2 * BLOCK + 1)
    vector.setflags(write=False)
    before = vector.copy()
    make_codec(config).encode(vector, rng())
    assert np.array_equal(vector, before)


@every_codec
def test_the_same_random_state_gives_the_same_bytes(config: CodecConfig) -> None:
    codec = make_codec(config)
    vector = sample(100)
    assert codec.encode(vector, rng()) == codec.encode(vector, rng())


@every_codec
def test_decoding_is_right_on_average(config: CodecConfig) -> None:
    # 4,000 draws: the standard error is at most scale / 2 / sqrt(4000) = 0.8 % of a scale; the
    # limit is 5 of those. Values sit anywhere between two levels.
    codec, source, draws = make_codec(config), rng(), 4000
    vector = sample(3 * BLOCK)
    total = np.zeros(vector.size)
    for _ in range(draws):
        total += codec.decode(codec.encode(vector, source), vector.size)
    error = np.abs(total / draws - vector)
    standard_error = ERROR_BOUNDS[config.name](vector) / 2 / np.sqrt(draws)
    limit = {"float32": 1e-12, "float16": ERROR_BOUNDS["float16"](vector)}  # nearest, not random
    assert (error <= limit.get(config.name, 5 * standard_error)).all()


@every_codec
@given(data=st.data())
def test_any_finite_vector_survives(config: CodecConfig, data: st.DataObject) -> None:
    peak = FLOAT16_MAX if config.name == "float16" else FLOAT32_MAX
    elements = st.floats(-peak, peak, width=32)
    vector = data.draw(hnp.arrays(np.float32, st.integers(0, 3 * BLOCK + 1), elements=elements))
    assert_within_bound(config, vector)


@every_codec
@given(data=st.binary(max_size=80), size=st.integers(0, 80))
def test_arbitrary_bytes_decode_to_finite_values_or_a_codec_error(
    config: CodecConfig, data: bytes, size: int
) -> None:
    try:
        decoded = make_codec(config).decode(data, size)
    except CodecError:
        return
    assert decoded.shape == (size,)
    assert np.isfinite(decoded).all()


@every_codec
@given(data=st.data())
def test_bytes_of_the_right_length_decode_to_finite_values_or_a_codec_error(
    config: CodecConfig, data: st.DataObject
) -> None:
    codec = make_codec(config)
    size = data.draw(st.integers(0, 2 * BLOCK + 1))
    length = codec.encoded_size(size)
    payload = data.draw(st.binary(min_size=length, max_size=length))
    try:
        decoded = codec.decode(payload, size)
    except CodecError as error:
        assert "payload holds" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert np.isfinite(decoded).all()


# --- error feedback over every codec --------------------------------------------------------------


@every_codec
def test_what_a_payload_lost_is_the_residual(config: CodecConfig) -> None:
    codec, delta, old = make_codec(config), sample(20), sample(20, 0.01)[::-1].copy()
    encoded = compensate(codec, delta, old, rng())
    arrived = codec.decode(encoded.payload, 20)
    assert np.array_equal(encoded.residual, (delta + old) - arrived)
    assert not encoded.residual.flags.writeable


@every_codec
def test_feedback_delivers_everything_in_the_long_run(config: CodecConfig) -> None:
    # What has arrived after any number of rounds lags what was wanted by one residual only.
    codec, source = make_codec(config), rng()
    delta, residual, arrived = sample(3 * BLOCK, 0.01), None, np.zeros(3 * BLOCK)
    for _ in range(50):
        encoded = compensate(codec, delta, residual, source)
        arrived += codec.decode(encoded.payload, delta.size)
        residual = encoded.residual
    assert residual is not None
    np.testing.assert_allclose(arrived + residual, 50 * delta.astype(np.float64), atol=1e-6)
    assert (np.abs(residual) <= 1.02 * ERROR_BOUNDS[config.name](delta)).all()


@every_codec
def test_a_residual_of_another_model_is_refused(config: CodecConfig) -> None:
    with pytest.raises(CodecError, match=r"residual of shape \(3,\) for a delta of \(4,\)"):
        compensate(make_codec(config), sample(4), sample(3), rng())


@every_codec
def test_a_sum_beyond_float32_is_not_sent(config: CodecConfig) -> None:
    huge = np.full(4, FLOAT32_MAX, np.float32)
    with pytest.raises(CodecError, match="NaN or inf"):
        compensate(make_codec(config), huge, huge, rng())


# --- golden bytes: devices in the field keep sending them, so these never change -----------------

GOLDEN = {
    "float32": (
        CodecConfig("float32"),
        [0, 1, -1, 127, -127, 0.5, -0.25, 63.5],
        "00000000 0000803f 000080bf 0000fe42 0000fec2 0000003f 000080be 00007e42",
    ),
    "float16": (
        CodecConfig("float16"),
        [0, 1, -1, 127, -127, 0.5, -0.25, 63.5],
        "0000 003c 00bc f057 f0d7 0038 00b4 f053",
    ),
    "int8": (
        CodecConfig("int8", block_size=4),
        [0, 1, -1, 127, -254, 2, 0, 4, 63.5, -0.5],
        "0000803f 00000040 0000003f"  # scales 1, 2 and 0.5
        "00 01 ff 7f  81 01 00 02  7f ff",  # levels 0 1 -1 127, -127 1 0 2, 127 -1
    ),
}


def test_every_codec_has_golden_bytes() -> None:
    assert set(GOLDEN) == set(CODECS)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_payload_has_these_bytes_for_ever(name: str) -> None:
    config, values, text = GOLDEN[name]
    codec, vector, payload = make_codec(config), np.array(values, np.float32), bytes.fromhex(text)
    for seed in (1, 2):  # these values sit on levels, so the random rounding does not show
        assert codec.encode(vector, np.random.default_rng(seed)) == payload
    assert np.array_equal(codec.decode(payload, vector.size), vector)


# --- what single codecs promise beyond that -------------------------------------------------------


def test_an_unknown_codec_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown codec 'int7'; known codecs: float32, float16"):
        make_codec(CodecConfig("int7"))


@pytest.mark.parametrize("block_size", [0, -1, (1 << 20) + 1])
def test_a_block_size_out_of_range_is_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match=f"block_size {block_size} is outside 1 to 1048576"):
        CodecConfig(block_size=block_size)


def test_float32_is_exact_to_the_bit() -> None:
    vector = np.array([-0.0, 1e-45, FLOAT32_MAX, np.pi], np.float32)
    assert round_trip(make_codec(CodecConfig("float32")), vector).tobytes() == vector.tobytes()


@pytest.mark.parametrize("value", [65_505.0, -70_000.0, 1e30])
def test_float16_refuses_what_would_become_inf(value: float) -> None:
    with pytest.raises(CodecError, match="does not fit float16, limit 65504"):
        make_codec(CodecConfig("float16")).encode(np.array([1.0, value], np.float32), rng())


def test_float16_carries_its_largest_number() -> None:
    vector = np.array([FLOAT16_MAX, -FLOAT16_MAX], np.float32)
    assert np.array_equal(round_trip(make_codec(CodecConfig("float16")), vector), vector)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_floats_refuse_a_payload_with_inf(name: str) -> None:
    payload = np.array([1, np.inf], "<f4" if name == "float32" else "<f2").tobytes()
    with pytest.raises(CodecError, match="payload holds NaN or inf"):
        make_codec(CodecConfig(name)).decode(payload, 2)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -1e-45, 3e36])
def test_int8_refuses_a_scale_no_encoder_writes(scale: float) -> None:
    payload = np.array([1.0, scale], "<f4").tobytes() + bytes(5)
    with pytest.raises(CodecError, match="payload holds the scale"):
        make_codec(CodecConfig(block_size=4)).decode(payload, 5)


def test_int8_refuses_the_level_that_has_no_positive_twin() -> None:
    payload = np.array([1.0], "<f4").tobytes() + np.array([3, -128], np.int8).tobytes()
    with pytest.raises(CodecError, match="level -128"):
        make_codec(CodecConfig()).decode(payload, 2)


def test_int8_carries_the_largest_and_smallest_numbers() -> None:
    codec = make_codec(CodecConfig(block_size=2))
    largest = np.array([FLOAT32_MAX, -FLOAT32_MAX], np.float32)
    np.testing.assert_allclose(round_trip(codec, largest), largest, rtol=1e-6)
    payload = codec.encode(np.array([1e-45, 0], np.float32), rng())
    assert np.frombuffer(payload, "<f4", 1)[0] == MIN_SCALE
    assert np.isfinite(np.float32(127) * MAX_SCALE)


def test_int8_is_right_on_average_below_its_smallest_scale() -> None:
    # A level is 2**-126; a value of a quarter of it must come out as one level every fourth time.
    codec, source = make_codec(CodecConfig()), rng()
    vector = np.full(4096, 2.0**-128, np.float32)
    decoded = codec.decode(codec.encode(vector, source), 4096)
    assert np.count_nonzero(decoded) == pytest.approx(1024, abs=5 * np.sqrt(4096 * 3 / 16))


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.97])
def test_int8_rounds_up_as_often_as_the_value_is_near(fraction: float) -> None:
    count = 1_000_000
    vector = np.full(count + 1, 5 + fraction, np.float32)
    vector[-1] = 127  # makes the scale 1
    codec = make_codec(CodecConfig(block_size=1 << 20))
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
    np.testing.assert_allclose(round_trip(make_codec(CodecConfig()), vector), vector, rtol=1e-6)


@pytest.mark.parametrize("size", [50_000, 250_000, 1_000_000])
def test_int8_takes_at_most_25_5_percent_of_float32(size: int) -> None:
    assert make_codec(CodecConfig()).encoded_size(size) <= 0.255 * 4 * size
