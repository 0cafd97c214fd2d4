"""The binary frame: a JSON header that describes, then raw bytes that are described.

    magic "FDG1" (4 bytes) | header length (uint32, big-endian) | JSON header | body

Used by model packages and by every message that carries a vector. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from fedge.errors import WireError

MAGIC = b"FDG1"
_PREFIX = struct.Struct(">4sI")
#: A header describes; more than this is an attack or a mistake.
MAX_HEADER_BYTES = 1 << 20

T = TypeVar("T")


def pack(header: msgspec.Struct, body: bytes | memoryview) -> bytes:
    """One frame."""
    text = msgspec.json.encode(header)
    return b"".join((_PREFIX.pack(MAGIC, len(text)), text, body))


def unpack(data: bytes, header_type: type[T], what: str) -> tuple[T, memoryview]:
    """The header and a view of the body.

    Args:
        data: the whole frame.
        header_type: the msgspec type the header must have.
        what: names the thing in errors ("update", "package").

    Raises:
        WireError: not such a frame.
    """
    if len(data) < _PREFIX.size:
        raise WireError(f"{what}: {len(data)} bytes are no frame")
    magic, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"{what}: starts with {magic!r}, expected {MAGIC!r}")
    if length > MAX_HEADER_BYTES or _PREFIX.size + length > len(data):
        raise WireError(f"{what}: header of {length} bytes in a frame of {len(data)}")
    view = memoryview(data)
    end = _PREFIX.size + length
    try:
        header = msgspec.json.decode(view[_PREFIX.size : end], type=header_type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{what}: header: {error}") from error
    return header, view[end:]
