"""Damage, made fast: what links, disks and attackers do to bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

#: Numbers at which something overflows, wraps, or is taken for something else.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_WIDE = (*_NUMBERS, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
#: The same, and nesting, in the words of JSON and YAML.
_TOKENS = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e999", b"-0.0", b"NaN", b"Infinity"),
    *(b"9" * 30, b"1e-400", b"[" * 2000, b'{"a":' * 500, b'"' + b"x" * 3000 + b'"', b"\\ud800"),
    *(b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"&a [*a]", b"!!python/object:os.system", b"<<: *x"),
    *(b"2024-13-40", b"#", b"+", b"/", b"$SYS", b"../", b"\r\n", b"\xef\xbb\xbf"),
)
_LONGEST = 1 << 16


def damaged(seed: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """The input with one to four kinds of damage."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_DAMAGES)(data, others, rng)
        if len(data) > _LONGEST:
            del data[_LONGEST:]
    return bytes(data)


def _place(data: bytearray, rng: Random) -> int:
    # Headers decide more than bodies: half of the damage goes to the first 64 bytes.
    return rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data)) if data else 0


def _flip(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    if data:
        data[_place(data, rng)] = rng.randrange(256)


def _cut(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    del data[_place(data, rng) :]


def _drop(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    start = _place(data, rng)
    del data[start : start + rng.choice((1, 1, 4, 64))]


def _insert(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    start = _place(data, rng)
    data[start:start] = rng.randbytes(rng.choice((1, 1, 4, 64, 1024)))


def _repeat(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    start = _place(data, rng)
    part = data[start : start + rng.choice((1, 8, 64))]
    data[start:start] = part * rng.choice((1, 2, 50))


def _splice(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    other = rng.choice(others)
    start = rng.randrange(len(other) + 1)
    data[_place(data, rng) :] = other[start:]


def _number(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    start = _place(data, rng)
    layout = rng.choice((">I", "<I", ">Q", "<Q"))
    numbers = _WIDE if layout[1] == "Q" else _NUMBERS
    packed = struct.pack(layout, rng.choice(numbers))
    data[start : start + len(packed)] = packed


def _token(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    """Replaces what stands between two marks of JSON or YAML."""
    start = _place(data, rng)
    ends = [end for mark in b",:}]\n" if (end := data.find(mark, start)) >= 0]
    end = min(ends, default=start)
    data[start:end] = rng.choice(_TOKENS)


def _digits(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    """Another number where one is written in digits."""
    places = [place for place, byte in enumerate(data[:4096]) if 0x30 <= byte <= 0x39]
    if places:
        start = rng.choice(places)
        sign = rng.choice((b"", b"-", b"1e", b"."))
        data[start : start + 1] = sign + str(rng.choice(_WIDE)).encode()


def _nothing_left(data: bytearray, others: Sequence[bytes], rng: Random) -> None:
    data[:] = rng.randbytes(rng.choice((0, 1, 16, 200)))


_DAMAGES = (
    *(_flip, _flip, _set, _cut, _drop, _insert, _repeat, _splice, _number, _number),
    *(_token, _token, _digits, _digits, _nothing_left),
)
