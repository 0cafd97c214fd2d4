"""What a decoder is to the fuzzer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True, eq=False)
class Decoder:
    """Something that turns bytes into values, or refuses them.

    Attributes:
        name: for people.
        decode: takes the bytes.
        declared: all that it may raise.
        seeds: valid inputs.
        memory_bytes: it may hold at a time, whatever the input says.
        share: of the inputs, in proportion; small for what is slow.
    """

    name: str
    decode: Callable[[bytes], object]
    declared: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    memory_bytes: int = 8 * MIB
    share: float = 1.0


def of_file(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Decodes by writing the bytes to a file and reading that."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return decode
