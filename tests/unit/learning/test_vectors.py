"""Named vectors as one frame of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from fedge.errors import WireError
from learning.vector.parameters import F32
from learning.vector.vectors import pack_vectors, read_only, unpack_vectors


def vector(*values: float) -> F32:
    return np.array(values, np.float32)


#: Byte-exact: what stores and devices wrote must stay readable.
GOLDEN = (
    b'FDG1\x00\x00\x00\x3a{"vectors":{"control":2,"steps":1},"scalars":{"rate":0.5}}'
    b"\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x00\x3f"
)


def test_vectors_have_these_bytes_for_ever() -> None:
    given = {"control": vector(1, -2), "steps": vector(0.5)}
    assert pack_vectors(given, {"rate": 0.5}) == GOLDEN
    vectors, scalars = unpack_vectors(GOLDEN, "device state")
    assert list(vectors) == ["control", "steps"]
    assert np.array_equal(vectors["control"], vector(1, -2))
    assert np.array_equal(vectors["steps"], vector(0.5))
    assert scalars == {"rate": 0.5}


def test_vectors_of_any_length_come_back_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    given = {
        "empty": vector(),
        "one": vector(-0.0),
        "extremes": vector(1e-45, 3.4028235e38, -3.4028235e38, np.pi),
        "long_1": rng.normal(size=5000).astype(np.float32),
    }
    found, scalars = unpack_vectors(pack_vectors(given), "state")
    assert list(found) == list(given)
    assert scalars == {}
    for name, expected in given.items():
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == expected.tobytes()


def test_no_vectors_come_back_as_none() -> None:
    assert unpack_vectors(pack_vectors({}), "state") == ({}, {})


def test_scalars_come_back_to_the_bit() -> None:
    scalars = {"alpha": 0.1, "large": 1.7976931348623157e308, "small": 5e-324, "whole": 3.0}
    assert unpack_vectors(pack_vectors({}, scalars), "state")[1] == scalars


def test_unpacked_vectors_are_read_only() -> None:
    found, _ = unpack_vectors(GOLDEN, "state")
    assert not any(values.flags.writeable for values in found.values())
    with pytest.raises(ValueError, match="read-only"):
        found["control"][0] = 1


def test_packing_takes_read_only_vectors_and_leaves_them_alone() -> None:
    given = read_only({"control": vector(1, -2), "steps": vector(0.5)})
    assert not any(values.flags.writeable for values in given.values())
    assert pack_vectors(given, {"rate": 0.5}) == GOLDEN


@pytest.mark.parametrize("cut", [*range(len(GOLDEN))])
def test_truncated_bytes_are_refused(cut: int) -> None:
    with pytest.raises(WireError, match="device state"):
        unpack_vectors(GOLDEN[:cut], "device state")


def test_bytes_beyond_the_frame_are_refused() -> None:
    with pytest.raises(WireError, match="state: 13 bytes, its header says 12"):
        unpack_vectors(GOLDEN + b"\0", "state")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"FDG1", b"FDG2"),
        (b'"steps":1', b'"steps":2'),
        (b'"steps":1', b'"steps":-'),
        (b'{"control":2,"steps":1}', b'{"control":-2,"step":1}'),
        (b'"control"', b'"Control"'),
        (b'"control"', b'"con/rol"'),
        (b"0.5", b'"x"'),
        (b'"vectors"', b'"vektors"'),
    ],
)
def test_damaged_headers_are_refused(old: bytes, new: bytes) -> None:
    assert old in GOLDEN
    damaged = GOLDEN.replace(old, new)
    with pytest.raises(WireError, match="state"):
        unpack_vectors(damaged, "state")


def frame(header: bytes, body: bytes = b"") -> bytes:
    return b"FDG1" + len(header).to_bytes(4, "big") + header + body


def test_a_vector_named_twice_is_refused() -> None:
    data = frame(b'{"vectors":{"m":1,"m":1}}', bytes(8))
    with pytest.raises(WireError, match="state: 8 bytes, its header says 4"):
        unpack_vectors(data, "state")


def test_a_length_beyond_all_memory_is_refused_before_it_is_taken() -> None:
    with pytest.raises(WireError, match=r"state: 4 bytes, its header says 4\d{15}"):
        unpack_vectors(frame(b'{"vectors":{"m":1000000000000000}}', bytes(4)), "state")


def test_more_than_64_vectors_are_refused() -> None:
    found, _ = unpack_vectors(pack_vectors({f"v{i}": vector(i) for i in range(64)}), "state")
    assert len(found) == 64
    with pytest.raises(WireError, match="length <= 64"):
        unpack_vectors(pack_vectors({f"v{i}": vector(i) for i in range(65)}), "state")


def test_another_format_is_refused() -> None:
    with pytest.raises(WireError, match="state"):
        unpack_vectors(frame(b'{"vectors":{"m":1},"format":1}', bytes(4)), "state")


def test_a_field_of_a_newer_release_is_ignored() -> None:
    found, _ = unpack_vectors(frame(b'{"vectors":{"m":1},"codec":"x"}', bytes(4)), "state")
    assert np.array_equal(found["m"], vector(0))
