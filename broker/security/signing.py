"""Signing keys of the coordinator (extra `secure`: cryptography)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.protocol.signed_messages import (
    MAX_KEYS,
    SignatureEnvelope,
    join,
    key_id,
    signed_bytes,
)
from fedge.errors import ConfigError

try:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )
except ImportError as _error:
    raise ConfigError(
        "signing needs the package cryptography: install fedge with its extra, fedge[secure]"
    ) from _error

_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----\n?", re.DOTALL)
#: Numbers reserved at once, so that not every message needs a write to disk. They are milliseconds:
#: one minute after a restart the clock has caught up with them.
_RESERVED_AHEAD = 60_000


class SigningKeys:
    """Private signing keys: one, or several during a rotation.

    Args:
        keys: private keys, the newest first.
    """

    def __init__(self, keys: Sequence[Ed25519PrivateKey]) -> None:
        self._keys = tuple(keys)
        raw = (Encoding.Raw, PublicFormat.Raw)
        self.public = tuple(key.public_key().public_bytes(*raw) for key in self._keys)

    @property
    def names(self) -> tuple[str, ...]:
        """Public keys as in registers and bundles: hexadecimal."""
        return tuple(key.hex() for key in self.public)

    @classmethod
    def generate(cls) -> SigningKeys:
        """Makes a new key."""
        return cls([Ed25519PrivateKey.generate()])

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKeys:
        """Derives a key from 32 bytes (RFC 8032, section 5.1.5), for reproducible simulations."""
        return cls([Ed25519PrivateKey.from_private_bytes(seed)])

    @classmethod
    def read(cls, path: Path) -> SigningKeys:
        """Reads the keys in a PEM file (PKCS #8, not encrypted, one after another).

        Raises:
            ConfigError: unreadable, or not 1 to 4 Ed25519 keys.
        """
        try:
            blocks = _PEM.findall(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"signing key {path} cannot be read: {error.strerror}") from error
        if not 1 <= len(blocks) <= MAX_KEYS:
            found = f"{len(blocks)} private keys in PEM, must be 1 to {MAX_KEYS}"
            raise ConfigError(f"signing key {path}: {found}")
        keys = []
        for block in blocks:
            try:
                key = load_pem_private_key(block, password=None)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"signing key {path} is damaged: {error}") from error
            if not isinstance(key, Ed25519PrivateKey):
                raise ConfigError(f"signing key {path}: not an Ed25519 key")
            keys.append(key)
        return cls(keys)

    def encode(self) -> bytes:
        """Returns the keys as PEM."""
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return b"".join(key.private_bytes(*form) for key in self._keys)

    def with_newer(self, newer: SigningKeys) -> SigningKeys:
        """Returns the newer keys followed by these."""
        return SigningKeys([*newer._keys, *self._keys])

    def newest(self) -> SigningKeys:
        """Returns the newest key alone."""
        return SigningKeys(self._keys[:1])

    def sign(self, topic: str, number: int, message: bytes) -> SignatureEnvelope:
        """Signs a message with every key."""
        text = signed_bytes(topic, number, message)
        signatures = {
            key_id(public): key.sign(text).hex()
            for public, key in zip(self.public, self._keys, strict=True)
        }
        return SignatureEnvelope(number=number, signatures=signatures)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Signer:
    """Signs messages with numbers that only grow.

    A number is the time in milliseconds, or one more than the last number if that is larger. So a
    new state folder continues above the numbers of the old one, and on the same folder numbers
    grow even if the clock was set back.

    Args:
        keys: signing keys.
        reserved: numbers up to this one are never used again.
        reserve: stores a new reserved number on disk; called before a number above it is used.
        clock_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        keys: SigningKeys,
        reserved: int,
        reserve: Callable[[int], None],
        clock_ms: Callable[[], int] = _now_ms,
    ) -> None:
        self.public = keys.public
        self._keys = keys
        self._reserved = self._last = reserved
        self._reserve = reserve
        self._clock_ms = clock_ms

    def signed(self, topic: str, message: bytes) -> bytes:
        """Returns the signed payload of a message on `topic`."""
        number = max(self._last + 1, self._clock_ms())
        if number > self._reserved:
            self._reserved = number + _RESERVED_AHEAD
            self._reserve(self._reserved)
        self._last = number
        return join(message, self._keys.sign(topic, number, message))
