"""Vectors by name: what travels, and what server and devices remember between rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from fedge.errors import WireError
from learning.vector import frames
from learning.vector.parameters import F32

#: By name; the parameter axis is the last one.
Vectors = Mapping[str, F32]

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
_MAX_VECTORS = 64


class _Header(msgspec.Struct, frozen=True, omit_defaults=True):
    vectors: Annotated[dict[Name, Annotated[int, Meta(ge=0)]], Meta(max_length=_MAX_VECTORS)]
    scalars: dict[str, float] = {}
    format: int = 2


def pack_vectors(vectors: Vectors, scalars: Mapping[str, float] | None = None) -> bytes:
    """One frame: names, lengths and scalars in its header, then little-endian float32."""
    header = _Header({n: v.size for n, v in vectors.items()}, dict(scalars or {}))
    return frames.pack(
        header, b"".join(v.astype("<f4", copy=False).tobytes() for v in vectors.values())
    )


def unpack_vectors(data: bytes, what: str) -> tuple[dict[str, F32], dict[str, float]]:
    """Vectors (read-only) and scalars that `pack_vectors` wrote.

    Raises:
        WireError: not such a frame, or of another length than its header says.
    """
    header, body = frames.unpack(data, _Header, what)
    expected = 4 * sum(header.vectors.values())
    if header.format != 2 or body.nbytes != expected:
        raise WireError(f"{what}: {body.nbytes} bytes, its header says {expected}")
    values = np.frombuffer(body, "<f4").astype(np.float32)
    values.setflags(write=False)
    found, start = {}, 0
    for name, size in header.vectors.items():
        found[name] = values[start : start + size]
        start += size
    return found, header.scalars


def read_only(vectors: Vectors) -> Vectors:
    """The same vectors, which nobody may change any more."""
    for vector in vectors.values():
        vector.setflags(write=False)
    return vectors
