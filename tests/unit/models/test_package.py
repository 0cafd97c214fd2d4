"""Model packages on disk and on the wire."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedge.errors import ModelError, WireError
from learning.vector import frames
from learning.vector.parameters import Layout, ParameterSpec
from models.package.package import (
    INITIAL_FILE,
    PROGRAM_FILE,
    SPEC_FILE,
    ModelPackage,
    encode_frozen,
    load_package,
    unpack_wire,
)
from models.package.spec import ModelSpec, TensorSpec

PROGRAM = b"\x1c\x00\x00\x00TFL3 and so on"
SPEC = ModelSpec(
    name="pump_wear",
    inputs=(TensorSpec("sensors", (2,)),),
    targets=(TensorSpec("target"),),
    outputs=(TensorSpec("prediction"),),
    loss="mean_squared_error",
    metrics=(),
    batch_size=8,
    layout=Layout((ParameterSpec("kernel", (2, 1)), ParameterSpec("bias", (1,)))),
)


def package() -> ModelPackage:
    return ModelPackage(SPEC, PROGRAM, np.array([1, 2, 3], np.float32))


def with_frozen(count: int, data: bytes) -> ModelPackage:
    spec = msgspec.structs.replace(SPEC, frozen=count)
    return ModelPackage(spec, PROGRAM, package().initial, frozen_bytes=data, architecture=b"{}")


def test_a_saved_package_loads_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    package().save(folder)
    assert {path.name for path in folder.iterdir()} == {PROGRAM_FILE, SPEC_FILE, INITIAL_FILE}
    again = load_package(folder)
    assert (again.spec, again.program, again.digest) == (SPEC, PROGRAM, package().digest)
    assert np.array_equal(again.initial, [1, 2, 3])


def test_frozen_tensors_have_scales_of_their_own() -> None:
    small, large = (np.full((3, 90), size, np.float32) for size in (1e-4, 1e4))
    vector = np.array([1e-6, 1.0, 1e6], np.float32)
    data = encode_frozen([small, large, vector])
    assert len(data) == 2 * (5 + 2 * 4 + 270) + 5 + 12
    numbers = with_frozen(543, data).frozen
    assert numbers is not None
    assert numbers[:270] == pytest.approx(1e-4)
    assert numbers[270:540] == pytest.approx(1e4)
    assert np.array_equal(numbers[540:], vector)
    exact = with_frozen(543, encode_frozen([small, large, vector], rounded=False)).frozen
    assert exact is not None
    assert np.array_equal(exact[:270], small.reshape(-1))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 numbers, expected 2"),
        (b"\0\2\0\0", "damaged"),
        (b"\0\2\0\0\0" + bytes(7), "damaged"),
        (b"\1\2\0\0\0" + bytes(5), "damaged"),
        (b"\0\3\0\0\0" + bytes(12), "more than the 2 numbers"),
        (b"\0\xff\xff\xff\xff" + bytes(12), "more than the 2 numbers"),
        (b"\0\1\0\0\0" + bytes(4), "1 numbers, expected 2"),
        (b"\0\2\0\0\0" + np.array([1, np.inf], "<f4").tobytes(), "not finite"),
        (b"\0\0\0\0\0" * 9, "0 numbers, expected 2"),
    ],
)
def test_damaged_frozen_tensors_are_rejected(data: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=f"frozen.bin: .*{says}"):
        with_frozen(2, data)


def test_saving_a_package_removes_files_of_the_previous_one(tmp_path: Path) -> None:
    with_frozen(1, encode_frozen([np.ones(1, np.float32)])).save(tmp_path)
    package().save(tmp_path)
    loaded = load_package(tmp_path)
    assert (loaded.frozen, loaded.architecture) == (None, b"")


def test_the_wire_form_carries_spec_and_program_but_not_theta() -> None:
    wire = package().wire
    content = unpack_wire(wire)
    assert (content.spec, content.program) == (SPEC, PROGRAM)
    assert np.array([1, 2, 3], "<f4").tobytes() not in wire
    assert package().digest == hashlib.sha256(wire).hexdigest()


def test_the_digest_covers_spec_program_and_theta() -> None:
    first = package()
    others = [
        ModelPackage(msgspec.structs.replace(SPEC, name="other"), PROGRAM, first.initial),
        ModelPackage(SPEC, PROGRAM + b"!", first.initial),
        ModelPackage(SPEC, PROGRAM, np.array([1, 2, 4], np.float32)),
    ]
    assert len({p.digest for p in (first, *others)}) == 4


def test_the_digest_does_not_depend_on_how_numbers_and_names_were_written() -> None:
    def with_input(mean: float, dtype: str) -> ModelPackage:
        tensor = TensorSpec("sensors", (2,), dtype, mean=(mean,), std=(1,))  # type: ignore[arg-type]
        spec = msgspec.structs.replace(SPEC, inputs=(tensor,))
        return ModelPackage(spec, PROGRAM, np.zeros(3, np.float32))

    # A dtype's name that is equal but not the same object, as numpy and Keras hand out.
    assert with_input(0, "".join(["float", "32"])).digest == with_input(0.0, "float32").digest


def test_a_spec_of_the_wrong_types_is_rejected() -> None:
    tensor = TensorSpec("sensors", (2,), "float64")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"\$\.inputs\[0\]\.dtype"):
        ModelPackage(
            msgspec.structs.replace(SPEC, inputs=(tensor,)), PROGRAM, np.zeros(3, np.float32)
        )


def test_theta_is_read_only_in_a_package() -> None:
    with pytest.raises(ValueError, match="read-only"):
        package().initial[0] = 5


def test_parts_of_a_package_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(ModelError, match=r"expected float32 of \(3,\)"):
        ModelPackage(SPEC, PROGRAM, np.zeros(4, np.float32))
    with pytest.raises(ModelError, match="initial weights have NaN"):
        ModelPackage(SPEC, PROGRAM, np.array([0, np.nan, 0], np.float32))
    with pytest.raises(ModelError, match="not a TFLite program"):
        ModelPackage(SPEC, b"garbage, long enough", np.zeros(3, np.float32))


@pytest.mark.parametrize("name", [PROGRAM_FILE, SPEC_FILE, INITIAL_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    package().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"{name}: No such file.*fedge model export"):
        load_package(tmp_path)


@pytest.mark.parametrize("name", [PROGRAM_FILE, SPEC_FILE, INITIAL_FILE])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_a_model_error(tmp_path: Path, name: str, content: bytes) -> None:
    package().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_package(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"{'descr", b"{(descr"),
        (b"'shape'", b"9999999"),
        (b"'shape': (", b"'shape': (99999999999"),  # 400 GB
        (b"'shape': (", b"'shape': (-9223372036854775809"),
    ],
)
def test_a_damaged_header_of_the_weights_is_rejected(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    package().save(tmp_path)
    path = tmp_path / INITIAL_FILE
    whole = path.read_bytes()
    # The header's length stays: what was inserted displaces the spaces at its end.
    header = whole[:127].replace(old, new).rstrip().ljust(127)
    assert len(header) == 127
    path.write_bytes(header + b"\n" + whole[128:])
    with pytest.raises(ModelError, match="not a numpy array"):
        load_package(tmp_path)


def test_pickled_weights_are_rejected(tmp_path: Path) -> None:
    package().save(tmp_path)
    np.save(tmp_path / INITIAL_FILE, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match="not a numpy array"):
        load_package(tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 7, 40, -1])
def test_a_truncated_wire_form_has_another_digest(cut: int) -> None:
    wire = package().wire
    assert hashlib.sha256(wire[:cut]).hexdigest() != package().digest
    if cut != -1:
        with pytest.raises(WireError):
            unpack_wire(wire[:cut])


def test_a_wire_form_without_program_is_rejected() -> None:
    class Header(msgspec.Struct):
        spec: ModelSpec
        initial_sha256: str
        program_bytes: int

    with pytest.raises(WireError, match="not a TFLite program"):
        unpack_wire(frames.pack(Header(SPEC, "", 19), b"nothing of the sort"))
