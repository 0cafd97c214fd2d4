"""The coordinator's signing keys (the extra `secure`: cryptography)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from broker.protocol.signed_messages import MAX_KEYS, Seal, join, key_id, signed_bytes
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
#: Numbers that are set aside at once, so that not every message costs a write to disk. They are
#: milliseconds: after a restart the clock has caught up with them in a minute.
_SET_ASIDE = 60_000


class SigningKeys:
    """One key, or during a rotation several, the newest first.

    Args:
        keys: private.
    """

    def __init__(self, keys: Sequence[Ed25519PrivateKey]) -> None:
        self._keys = tuple(keys)
        raw = (Encoding.Raw, PublicFormat.Raw)
        self.public = tuple(key.public_key().public_bytes(*raw) for key in self._keys)

    @property
    def names(self) -> tuple[str, ...]:
        """The public keys as registers and bundles have them: hexadecimal."""
        return tuple(key.hex() for key in self.public)

    @classmethod
    def generate(cls) -> SigningKeys:
        """One new key."""
        return cls([Ed25519PrivateKey.generate()])

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKeys:
        """The key that 32 bytes make (RFC 8032, section 5.1.5), for simulations that repeat."""
        return cls([Ed25519PrivateKey.from_private_bytes(seed)])

    @classmethod
    def read(cls, path: Path) -> SigningKeys:
        """The keys in a PEM file (PKCS #8, not encrypted, one after another).

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
                raise ConfigError(f"signing key {path}: not of the kind Ed25519")
            keys.append(key)
        return cls(keys)

    def encode(self) -> bytes:
        """As PEM."""
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return b"".join(key.private_bytes(*form) for key in self._keys)

    def after(self, newer: SigningKeys) -> SigningKeys:
        """The newer keys, and these behind them."""
        return SigningKeys([*newer._keys, *self._keys])

    def newest(self) -> SigningKeys:
        """The first key alone."""
        return SigningKeys(self._keys[:1])

    def sign(self, topic: str, number: int, message: bytes) -> Seal:
        """The seal of a message, by every key."""
        text = signed_bytes(topic, number, message)
        signatures = {
            key_id(public): key.sign(text).hex()
            for public, key in zip(self.public, self._keys, strict=True)
        }
        return Seal(number=number, signatures=signatures)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Signer:
    """Seals messages with numbers that only grow.

    A number is the time in milliseconds, or one more than the last where that is larger. A new
    state folder so goes on above the old one's numbers; on the same folder a clock that was set
    back does no harm either.

    Args:
        keys: that sign.
        reserved: no number up to this is used again.
        reserve: puts a new such number on disk; called before one above it is used.
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

    def sealed(self, topic: str, message: bytes) -> bytes:
        """The payload to publish on `topic`."""
        number = max(self._last + 1, self._clock_ms())
        if number > self._reserved:
            self._reserved = number + _SET_ASIDE
            self._reserve(self._reserved)
        self._last = number
        return join(message, self._keys.sign(topic, number, message))
