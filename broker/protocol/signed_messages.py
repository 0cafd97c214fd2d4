"""Seals: what proves that a message is the coordinator's, and no older than another.

A sealed payload is two lines of JSON, the message and its seal:

    {"session":"8c1f","round_id":7, …}
    {"number":1764000000000,"signatures":{"<key id>":"<128 hex digits>"}}

Signed are the bytes of the first line as they are, so nobody has to write JSON in one certain way,
and both lines are read with `mosquitto_sub`. The topic is signed too, and with it the federation:
what was said in one place counts nowhere else. Chunks have no seal: a sealed message names the
SHA-256 of their blob.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.protocol.ed25519 import KEY_BYTES
from broker.protocol.messages import Count, KeyId
from broker.protocol.topics import (
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    RoundTopic,
    Topic,
)
from fedge.errors import ConfigError, WireError

#: Begins everything that is signed, so that no signature of another use of the key fits.
LABEL = b"fedge/v1 sealed"
#: The coordinator's messages that carry a seal.
SEALED_TOPICS = (CoordinatorStatusTopic, ProgramTopic, RoundTopic, InboxTopic)
MAX_KEYS = 4
_MAX_PEM_BYTES = 64 << 10

_Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
#: An Ed25519 key as SubjectPublicKeyInfo (RFC 8410, section 4) is this and its 32 bytes.
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----")


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The second line of a sealed payload.

    Attributes:
        number: grows with every message of the coordinator, also over restarts.
        signatures: hexadecimal, by key; during a rotation the old key and the new one sign.
    """

    number: Count
    signatures: Annotated[dict[KeyId, _Signature], Meta(min_length=1, max_length=MAX_KEYS)]


def is_sealed(topic: Topic) -> bool:
    """Whether messages on this topic carry a seal, when the coordinator has a key."""
    return isinstance(topic, SEALED_TOPICS)


def key_id(public_key: bytes) -> str:
    """What a seal calls a key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def signed_bytes(topic: str, number: int, message: bytes) -> bytes:
    """What the signature is on.

    Args:
        topic: as MQTT knows it, federation included.
        number: of the seal.
        message: the first line, byte for byte.
    """
    return b"\n".join((LABEL, topic.encode(), str(number).encode(), message))


def join(message: bytes, seal: Seal) -> bytes:
    """A sealed payload; `message` has no line feed in it."""
    return message + b"\n" + msgspec.json.encode(seal)


def split(payload: bytes) -> tuple[bytes, bytes]:
    """The message, and the line of its seal, empty when there is none."""
    message, _, seal = payload.partition(b"\n")
    return message, seal


def parse(line: bytes) -> Seal:
    """The seal in a line.

    Raises:
        WireError: not a seal.
    """
    try:
        return msgspec.json.decode(line, type=Seal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"seal: {error}") from error


def encode_public_keys(keys: Iterable[bytes]) -> bytes:
    """Public keys as PEM, one after another."""
    blocks = []
    for key in keys:
        text = base64.b64encode(_SPKI_PREFIX + key).decode()
        blocks.append(f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    return "".join(blocks).encode()


def read_public_keys(path: Path) -> tuple[bytes, ...]:
    """The Ed25519 keys in a PEM file, 32 bytes each.

    Raises:
        ConfigError: unreadable; there is no key, there are too many, or one is of another kind.
    """
    where = f"trusted_keys {path}"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_PEM_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
    keys = []
    for block in _PEM.findall(text):
        try:
            der = base64.b64decode("".join(block.split()), validate=True)
        except binascii.Error as error:
            raise ConfigError(f"{where}: a public key is damaged: {error}") from error
        if len(der) != len(_SPKI_PREFIX) + KEY_BYTES or not der.startswith(_SPKI_PREFIX):
            raise ConfigError(f"{where}: a public key is not of the kind Ed25519")
        keys.append(der[len(_SPKI_PREFIX) :])
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ConfigError(f"{where}: {len(keys)} public keys in PEM, must be 1 to {MAX_KEYS}")
    return tuple(keys)
