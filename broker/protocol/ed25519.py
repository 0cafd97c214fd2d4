"""Verification of Ed25519 signatures without a library (RFC 8032, section 5.1).

A device verifies a few small messages a round: some milliseconds of arithmetic on Python integers
cost less than a cryptography library on disk and in memory (benchmarks/signatures.py). No input is
secret, so the run time may depend on it. Signing is in `broker.security.signing`.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

KEY_BYTES, SIGNATURE_BYTES = 32, 64

#: The field's prime and the order of the base point (RFC 8032, table 1).
_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)

#: X, Y, Z, T with x = X/Z, y = Y/Z, x·y = T/Z.
_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)


def is_valid(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Returns whether `signature` is a signature of `message` by the key.

    Verifies as OpenSSL does: the equation without cofactor, S below the order of the base point.
    Caches the last results, since brokers deliver messages again, and one process may host many
    agents.

    Args:
        public_key: 32 bytes.
        message: any length.
        signature: 64 bytes; any other length is not valid.
    """
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    return _is_valid(public_key, digest, signature)


@lru_cache(maxsize=64)
def _is_valid(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    table = _table_of(public_key)
    s = int.from_bytes(signature[32:], "little")
    if table is None or s >= _L:
        return False
    k = int.from_bytes(digest, "little") % _L
    return _encoded(_combined(s, k, table)) == signature[:32]


@lru_cache(maxsize=16)
def _table_of(public_key: bytes) -> tuple[_Point, _Point, _Point] | None:
    """Returns B, -A and B - A for base point B and the key's point A; None if A is no point."""
    point = _decoded(public_key)
    if point is None:
        return None
    x, y, z, t = point
    minus_a = (_P - x, y, z, _P - t)
    return _BASE, minus_a, _sum(_BASE, minus_a)


def _combined(s: int, k: int, table: tuple[_Point, _Point, _Point]) -> _Point:
    """Returns s·B - k·A in one pass over the bits of both (Straus 1964)."""
    result = _NEUTRAL
    for bit in range(max(s.bit_length(), k.bit_length()) - 1, -1, -1):
        result = _doubled(result)
        which = (s >> bit & 1) | (k >> bit & 1) << 1
        if which:
            result = _sum(result, table[which - 1])
    return result


def _sum(left: _Point, right: _Point) -> _Point:
    """Adds two points (RFC 8032, section 5.1.4)."""
    x1, y1, z1, t1 = left
    x2, y2, z2, t2 = right
    a = (y1 - x1) * (y2 - x2) % _P
    b = (y1 + x1) * (y2 + x2) % _P
    c = 2 * t1 * t2 * _D % _P
    d = 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _doubled(point: _Point) -> _Point:
    """Doubles a point (RFC 8032, section 5.1.4)."""
    x, y, z, _ = point
    a = x * x % _P
    b = y * y % _P
    h = a + b
    e = h - (x + y) * (x + y)
    g = a - b
    f = 2 * z * z + g
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _encoded(point: _Point) -> bytes:
    """Encodes a point (RFC 8032, section 5.1.2)."""
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    x, y = x * inverse % _P, y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(KEY_BYTES, "little")


def _decoded(data: bytes) -> _Point | None:
    """Decodes a point (RFC 8032, section 5.1.3); None if there is no such point."""
    number = int.from_bytes(data, "little")
    odd, y = number >> 255, number & ((1 << 255) - 1)
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if v * x * x % _P == _P - u:
        x = x * _ROOT_OF_MINUS_1 % _P
    if (v * x * x - u) % _P or (x == 0 and odd):
        return None
    x = _P - x if x & 1 != odd else x
    return x, y, 1, x * y % _P


def _base_point() -> _Point:
    point = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(KEY_BYTES, "little"))
    assert point is not None, "y = 4/5 is on the curve"
    return point


_BASE = _base_point()
