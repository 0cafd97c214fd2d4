"""Model package: program, spec and initial θ, named by the digest of its content.

On disk a package is a folder with `program.tflite`, `spec.json` and `initial.npy`; `personal.npy`
and `frozen.bin` where the model has such parts; and `architecture.json`, Keras's own description of
the model, from which a workstation makes inference models (`fedge model release`). On the wire a
package is one frame: the spec in the header; program, personal and frozen part in the body. θ
travels separately, as version 0; the header holds its digest, so that the package's digest covers
everything that a device uses.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import msgspec
import numpy as np

from fedge.errors import CodecError, ModelError, WireError
from learning.codecs.codec import Codec
from learning.codecs.registry import CODECS
from learning.vector import frames
from learning.vector.parameters import F32
from models.package.spec import ModelSpec

PROGRAM_FILE = "program.tflite"
SPEC_FILE = "spec.json"
INITIAL_FILE = "initial.npy"
PERSONAL_FILE = "personal.npy"
FROZEN_FILE = "frozen.bin"
ARCHITECTURE_FILE = "architecture.json"
#: Largest program: programs carry no weights.
MAX_PROGRAM_BYTES = 64 << 20
_FLATBUFFER_ID = b"TFL3"
_NPY: Any = np.lib.format  # numpy leaves it without types
#: Exceptions for damaged arrays: numpy parses their headers as Python expressions.
_DAMAGE = (ValueError, OSError, EOFError, SyntaxError, TokenError, TypeError, OverflowError)

#: Codec of rounded frozen tensors: one byte per number, a scale for every 256 numbers.
_ROUNDED: Codec = CODECS.make({"name": "int8", "block_size": 256})
#: Header of each frozen tensor: whether it is rounded, and its number of elements.
_TENSOR_HEADER = struct.Struct("<?I")


class _WireHeader(msgspec.Struct, frozen=True):
    spec: ModelSpec
    initial_sha256: str
    program_bytes: int


@dataclass(frozen=True, eq=False)
class Unpacked:
    """Content of a package that a device uses: everything but θ.

    Attributes:
        spec: the model's spec.
        program: the .tflite file.
        personal: initial personal part; float32, shape (spec.personal.size,), or empty.
        frozen: decoded numbers of frozen layers; None when the model has none.
    """

    spec: ModelSpec
    program: bytes
    personal: F32
    frozen: F32 | None


@dataclass(frozen=True, eq=False)
class ModelPackage:
    """Exported model.

    Attributes:
        spec: inputs, outputs and layout of the program.
        program: the .tflite file.
        initial: θ of version 0; float32, shape (P,).
        personal: initial personal part; float32, shape (spec.personal.size,), or empty.
        frozen_bytes: encoded numbers of frozen layers (`encode_frozen`).
        architecture: JSON of the Keras model, for workstations; devices never see it.
    """

    spec: ModelSpec
    program: bytes
    initial: F32
    personal: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    frozen_bytes: bytes = b""
    architecture: bytes = b""

    def __post_init__(self) -> None:
        check_program_bytes(self.program, PROGRAM_FILE)
        # Decoded from its JSON: a spec built in Python is validated too, and gives the same bytes,
        # hence the same digest, whether 0 or 0.0 was given and whether it was ever on disk.
        object.__setattr__(self, "spec", ModelSpec.from_json(self.spec.to_json(), SPEC_FILE))
        self.spec.layout.check(self.initial)
        _check_personal(self.spec, self.personal)
        for name, vector in ((INITIAL_FILE, self.initial), (PERSONAL_FILE, self.personal)):
            if not np.isfinite(vector).all():
                raise ModelError(f"{name}: initial weights have NaN or inf")
            vector.setflags(write=False)
        _decode_frozen(self.spec, self.frozen_bytes)

    @cached_property
    def wire(self) -> bytes:
        """Frame that agents fetch: spec, program, personal and frozen part."""
        digest = hashlib.sha256(self.initial.astype("<f4").tobytes()).hexdigest()
        header = _WireHeader(self.spec, digest, len(self.program))
        body = self.program + self.personal.astype("<f4").tobytes() + self.frozen_bytes
        return frames.pack(header, body)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the wire form, hex: the package's name."""
        return hashlib.sha256(self.wire).hexdigest()

    @property
    def frozen(self) -> F32 | None:
        """Decoded numbers of frozen layers; None when there are none."""
        return _decode_frozen(self.spec, self.frozen_bytes)

    @property
    def content(self) -> Unpacked:
        """Content that a device gets."""
        return Unpacked(self.spec, self.program, self.personal, self.frozen)

    def whole(self, theta: F32) -> F32:
        """Returns the vector that the program takes: θ, then the initial personal part."""
        return np.concatenate([theta, self.personal]) if self.personal.size else theta

    def save(self, folder: Path, write: Callable[[Path, bytes], object] = Path.write_bytes) -> None:
        """Writes the package's files into `folder`, which is created when absent.

        Args:
            folder: files of a package that is there already are replaced or removed.
            write: writes one file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / PROGRAM_FILE, self.program)
        write(folder / SPEC_FILE, self.spec.to_json())
        write(folder / INITIAL_FILE, _npy(self.initial))
        optional = {
            PERSONAL_FILE: _npy(self.personal) if self.personal.size else b"",
            FROZEN_FILE: self.frozen_bytes,
            ARCHITECTURE_FILE: self.architecture,
        }
        for name, data in optional.items():
            if data:
                write(folder / name, data)
            else:
                (folder / name).unlink(missing_ok=True)


def _npy(vector: F32) -> bytes:
    file = io.BytesIO()
    np.save(file, vector, allow_pickle=False)
    return file.getvalue()


def encode_frozen(tensors: Iterable[F32], *, rounded: bool = True) -> bytes:
    """Encodes frozen tensors one after the other, each with its own header and scales.

    Matrices and kernels are rounded to one byte per number, off by at most half of 1/127 of the
    block's largest. Vectors (biases, the statistics of a normalization) are small and may span
    orders of magnitude: they stay float32, as does everything without `rounded`.
    """
    parts = []
    for tensor in tensors:
        is_rounded = rounded and tensor.ndim > 1
        numbers = np.ascontiguousarray(tensor, np.float32).reshape(-1)
        parts.append(_TENSOR_HEADER.pack(is_rounded, numbers.size))
        if is_rounded:
            parts.append(_ROUNDED.encode(numbers, 0, _Nearest()))  # type: ignore[arg-type]
        else:
            parts.append(numbers.astype("<f4").tobytes())
    return b"".join(parts)


class _Nearest:
    """Substitute for a random generator: stochastic rounding at 1/2 rounds to nearest."""

    def random(self, size: int, dtype: Any) -> F32:
        return np.full(size, 0.5, dtype)


def _decode_frozen(spec: ModelSpec, data: bytes | memoryview) -> F32 | None:
    if not spec.frozen:
        if len(data):
            raise ModelError(f"{FROZEN_FILE}: {len(data)} bytes for a model without frozen layers")
        return None
    vector = np.empty(spec.frozen, np.float32)
    done = place = 0
    try:
        while place < len(data):
            is_rounded, count = _TENSOR_HEADER.unpack_from(data, place)
            place += _TENSOR_HEADER.size
            if count > spec.frozen - done:
                raise ModelError(f"{FROZEN_FILE}: more than the {spec.frozen} numbers of the spec")
            size = _ROUNDED.max_bytes(count) if is_rounded else 4 * count
            part = data[place : place + size]
            vector[done : done + count] = (
                _ROUNDED.decode(part, count, 0) if is_rounded else np.frombuffer(part, "<f4")
            )
            done, place = done + count, place + size
    except (CodecError, struct.error, ValueError) as error:
        raise ModelError(f"{FROZEN_FILE}: damaged: {error}") from error
    if done != spec.frozen:
        raise ModelError(f"{FROZEN_FILE}: {done} numbers, expected {spec.frozen}")
    if not np.isfinite(vector).all():
        raise ModelError(f"{FROZEN_FILE}: a number is not finite")
    return vector


def _check_personal(spec: ModelSpec, personal: F32) -> None:
    size = spec.whole_size - spec.size
    if personal.dtype != np.float32 or personal.shape != (size,):
        raise ModelError(
            f"{PERSONAL_FILE}: {personal.dtype} of shape {personal.shape}, "
            f"expected float32 of ({size},)"
        )


def load_package(folder: Path) -> ModelPackage:
    """Reads the package in `folder`.

    Raises:
        ModelError: a file is missing or does not fit the others; names the file.
    """
    spec = ModelSpec.from_json(_read(folder / SPEC_FILE), str(folder / SPEC_FILE))
    program = _read(folder / PROGRAM_FILE)
    initial = _read_array(folder / INITIAL_FILE)
    none = np.zeros(0, np.float32)
    personal = _read_array(folder / PERSONAL_FILE) if spec.personal else none
    frozen = _read(folder / FROZEN_FILE) if spec.frozen else b""
    path = folder / ARCHITECTURE_FILE
    architecture = _read(path) if path.exists() else b""
    try:
        return ModelPackage(spec, program, initial, personal, frozen, architecture)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def read_vector(path: Path) -> F32:
    """Reads a vector in the format of `initial.npy`: float32, one axis, finite.

    Raises:
        ModelError: the file is missing or holds something else.
    """
    theta = _read_array(path)
    if theta.dtype != np.float32 or theta.ndim != 1 or not np.isfinite(theta).all():
        raise ModelError(f"{path}: {theta.dtype} of shape {theta.shape}, expected finite float32")
    found: F32 = theta
    return found


def unpack_wire(data: bytes) -> Unpacked:
    """Decodes the wire form of a package.

    Raises:
        WireError: not a package.
    """
    header, body = frames.unpack(data, _WireHeader, "package")
    spec = header.spec
    cuts = header.program_bytes, header.program_bytes + 4 * (spec.whole_size - spec.size)
    if not 0 <= cuts[0] <= cuts[1] <= len(body):
        raise WireError(f"package: body has {len(body)} bytes, its header claims {cuts[1]} or more")
    program = bytes(body[: cuts[0]])
    try:
        check_program_bytes(program, "package")
        frozen = _decode_frozen(spec, body[cuts[1] :])
    except ModelError as error:
        raise WireError(str(error)) from error
    personal = np.frombuffer(body[cuts[0] : cuts[1]], "<f4").astype(np.float32)
    if not np.isfinite(personal).all():
        raise WireError("package: personal part has NaN or inf")
    return Unpacked(spec, program, personal, frozen)


def check_program_bytes(program: bytes, origin: str) -> None:
    """Raises ModelError unless `program` is a TFLite flatbuffer within the size limit."""
    if len(program) > MAX_PROGRAM_BYTES:
        raise ModelError(f"{origin}: {len(program)} bytes, limit {MAX_PROGRAM_BYTES}")
    if program[4:8] != _FLATBUFFER_ID:
        raise ModelError(f"{origin}: not a TFLite program (no {_FLATBUFFER_ID.decode()} mark)")


def _read_array(path: Path) -> Any:
    data = _read(path)
    try:
        # The header first: numpy allocates the memory that it claims before it reads the data.
        file = io.BytesIO(data)
        if _NPY.read_magic(file) != (1, 0):
            raise ValueError("not written by `fedge model export`")
        shape, _, dtype = _NPY.read_array_header_1_0(file)
        if prod(shape) * dtype.itemsize > len(data):
            raise ValueError(f"{len(data)} bytes for {dtype} of shape {shape}")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except _DAMAGE as error:
        raise ModelError(f"{path}: not a numpy array: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}; a model package holds {PROGRAM_FILE}, {SPEC_FILE} "
            f"and {INITIAL_FILE} (made by `fedge model export`)"
        ) from error
