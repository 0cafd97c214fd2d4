"""A model package: program + spec + initial θ, named by its content.

On disk it is a folder with `program.tflite`, `spec.json` and `initial.npy`. On the wire it is one
frame with the spec in the header and the program as body: θ travels as version 0, not twice; the
header holds θ's digest, so the package's digest covers all three.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import msgspec
import numpy as np

from models import frames
from models.errors import ModelError, WireError
from models.parameters import F32
from models.spec import ModelSpec

PROGRAM_FILE = "program.tflite"
SPEC_FILE = "spec.json"
INITIAL_FILE = "initial.npy"
#: Programs carry no weights; anything larger than this is not one.
MAX_PROGRAM_BYTES = 64 << 20
_FLATBUFFER_ID = b"TFL3"
_NPY: Any = np.lib.format  # numpy leaves it without types
#: What numpy raises for damaged files, whose headers it reads as Python's words.
_NO_ARRAY = (ValueError, OSError, EOFError, SyntaxError, TokenError, TypeError, OverflowError)


class _WireHeader(msgspec.Struct, frozen=True):
    spec: ModelSpec
    initial_sha256: str


@dataclass(frozen=True, eq=False)
class ModelPackage:
    """Program bytes, spec and initial θ (float32, shape (P,))."""

    spec: ModelSpec
    program: bytes
    initial: F32

    def __post_init__(self) -> None:
        check_program_bytes(self.program, PROGRAM_FILE)
        # As decoded from its JSON: validated also when built in Python, and the same bytes, hence
        # the same digest, whether 0 or 0.0 was given and whether it was ever on disk.
        object.__setattr__(self, "spec", ModelSpec.from_json(self.spec.to_json(), SPEC_FILE))
        self.spec.layout.check(self.initial)
        if not np.isfinite(self.initial).all():
            raise ModelError(f"{INITIAL_FILE}: initial θ has NaN or inf")
        self.initial.setflags(write=False)

    @cached_property
    def wire(self) -> bytes:
        """The frame that agents fetch: spec and program."""
        digest = hashlib.sha256(self.initial.astype("<f4").tobytes()).hexdigest()
        return frames.pack(_WireHeader(self.spec, digest), self.program)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the wire form, hex: the package's name."""
        return hashlib.sha256(self.wire).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the three files into `folder`, which is made when absent."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRAM_FILE).write_bytes(self.program)
        (folder / SPEC_FILE).write_bytes(self.spec.to_json())
        np.save(folder / INITIAL_FILE, self.initial, allow_pickle=False)


def load_package(folder: Path) -> ModelPackage:
    """The package in `folder`.

    Raises:
        ModelError: a file is missing or does not fit the others; names the file.
    """
    spec = ModelSpec.from_json(_read(folder / SPEC_FILE), str(folder / SPEC_FILE))
    program = _read(folder / PROGRAM_FILE)
    initial = _read_array(folder / INITIAL_FILE)
    try:
        return ModelPackage(spec, program, initial)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def unpack_wire(data: bytes) -> tuple[ModelSpec, bytes]:
    """Spec and program from a package's wire form.

    Raises:
        WireError: not a package.
    """
    header, body = frames.unpack(data, _WireHeader, "package")
    program = bytes(body)
    try:
        check_program_bytes(program, "package")
    except ModelError as error:
        raise WireError(str(error)) from error
    return header.spec, program


def check_program_bytes(program: bytes, origin: str) -> None:
    """Raises ModelError unless `program` looks like a TFLite flatbuffer of a sane size."""
    if len(program) > MAX_PROGRAM_BYTES:
        raise ModelError(f"{origin}: {len(program)} bytes, limit {MAX_PROGRAM_BYTES}")
    if program[4:8] != _FLATBUFFER_ID:
        raise ModelError(f"{origin}: not a TFLite program (no {_FLATBUFFER_ID.decode()} mark)")


def _read_array(path: Path) -> Any:
    data = _read(path)
    try:
        # The header first: numpy takes the memory that it promises before it looks for the data.
        file = io.BytesIO(data)
        if _NPY.read_magic(file) != (1, 0):
            raise ValueError("not written by `fedge model export`")
        shape, _, dtype = _NPY.read_array_header_1_0(file)
        if prod(shape) * dtype.itemsize > len(data):
            raise ValueError(f"{len(data)} bytes for {dtype} of shape {shape}")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except _NO_ARRAY as error:
        raise ModelError(f"{path}: no numpy array: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}; a model package holds {PROGRAM_FILE}, {SPEC_FILE} "
            f"and {INITIAL_FILE} (made by `fedge model export`)"
        ) from error
