"""Signed messages of the coordinator: the signature envelope proves origin and order.

A signed payload is one JSON document: the message with its signature envelope as last member.

    {"session":"8c1f", … ,"signed":{"number":1764000000000,"signatures":{"<key id>":"<hex>"}}}

The signature covers the bytes of the message without that member, as they are: `split` cuts it off
and gives back the message byte for byte, so no canonical form of JSON is needed
(docs/decisions/0007-one-document-a-payload.md). It also covers the topic, and with it the
federation: a message replayed on another topic is refused. Chunks are not signed: a signed message
names the SHA-256 of their blob.
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

#: Prefix of all signed bytes, so that a signature made for another purpose is never valid here.
LABEL = b"fedge/v1 signed"
#: Begin of the last member of a signed payload. No string of a message contains these bytes, since
#: JSON escapes quotes in strings.
_MEMBER = b'"signed":'
_BEGIN = _MEMBER + b'{"number":'
#: Topics of the coordinator's signed messages.
SIGNED_TOPICS = (CoordinatorStatusTopic, ProgramTopic, RoundTopic, InboxTopic)
MAX_KEYS = 4
_MAX_PEM_BYTES = 64 << 10

_Signature = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
#: An Ed25519 key as SubjectPublicKeyInfo (RFC 8410, section 4) is this and its 32 bytes.
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----")


class SignatureEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """Member `signed` of a signed payload.

    Attributes:
        number: grows with every message of the coordinator, also across restarts.
        signatures: hexadecimal, by key id; during a rotation the old and the new key sign.
    """

    number: Count
    signatures: Annotated[dict[KeyId, _Signature], Meta(min_length=1, max_length=MAX_KEYS)]


def is_signed(topic: Topic) -> bool:
    """Returns whether messages on this topic are signed, if the coordinator has a key."""
    return isinstance(topic, SIGNED_TOPICS)


def key_id(public_key: bytes) -> str:
    """Returns the id of a key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def signed_bytes(topic: str, number: int, message: bytes) -> bytes:
    """Returns the bytes that a signature covers.

    Args:
        topic: MQTT topic, federation included.
        number: number of the signature envelope.
        message: the message without signature envelope, byte for byte.
    """
    return b"\n".join((LABEL, topic.encode(), str(number).encode(), message))


def join(message: bytes, envelope: SignatureEnvelope) -> bytes:
    """Returns the signed payload of `message`, a JSON object."""
    return splice(message, msgspec.json.encode(envelope))


def splice(message: bytes, envelope: bytes) -> bytes:
    """Returns a payload: `message`, a JSON object, with an encoded envelope as last member."""
    comma = b"" if message == b"{}" else b","
    return message[:-1] + comma + _MEMBER + envelope + b"}"


def split(payload: bytes) -> tuple[bytes, bytes]:
    """Splits a payload into message and encoded envelope, which is empty if there is none.

    The inverse of `splice`. Only what is returned as message may be acted on: the signature covers
    these bytes, and not what a parser of JSON makes of the payload.
    """
    at = payload.rfind(_BEGIN)
    if at < 0:
        return payload, b""
    before, envelope = payload[:at], payload[at + len(_MEMBER) : -1]
    if payload.endswith(b"}"):
        if before.endswith(b","):
            return before[:-1] + b"}", envelope
        if before == b"{":
            return b"{}", envelope
    return payload, b""


def parse(envelope: bytes) -> SignatureEnvelope:
    """Parses a signature envelope.

    Raises:
        WireError: not a signature envelope.
    """
    try:
        return msgspec.json.decode(envelope, type=SignatureEnvelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"signature envelope: {error}") from error


def encode_public_keys(keys: Iterable[bytes]) -> bytes:
    """Returns public keys as PEM, one after another."""
    blocks = []
    for key in keys:
        text = base64.b64encode(_SPKI_PREFIX + key).decode()
        blocks.append(f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    return "".join(blocks).encode()


def read_public_keys(path: Path) -> tuple[bytes, ...]:
    """Reads the Ed25519 keys in a PEM file, 32 bytes each.

    Raises:
        ConfigError: unreadable, no key, too many keys, or a key of another type.
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
            raise ConfigError(f"{where}: a public key is not an Ed25519 key")
        keys.append(der[len(_SPKI_PREFIX) :])
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ConfigError(f"{where}: {len(keys)} public keys in PEM, must be 1 to {MAX_KEYS}")
    return tuple(keys)
