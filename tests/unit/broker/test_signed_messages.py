"""Signature envelopes and signing keys: numbers only grow, key files are checked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from broker.protocol import signed_messages
from broker.security.signing import Signer, SigningKeys
from coordinator.storage.store import Store
from fedge.errors import ConfigError, WireError

TOPIC = "fedge/v1/f/round"


def number_of(payload: bytes) -> int:
    return signed_messages.parse(signed_messages.split(payload)[1]).number


class Disk:
    """What a signer set aside, and its clock."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.reserved, self.writes, self.now_ms = 0, 0, now_ms
        self.keys = SigningKeys.generate()

    def reserve(self, number: int) -> None:
        self.reserved, self.writes = number, self.writes + 1

    def signer(self) -> Signer:
        return Signer(self.keys, self.reserved, self.reserve, lambda: self.now_ms)


def test_numbers_follow_the_clock_and_grow_within_a_millisecond() -> None:
    disk = Disk()
    signer = disk.signer()
    numbers = [number_of(signer.signed(TOPIC, b"{}")) for _ in range(3)]
    assert numbers == [1_000_000, 1_000_001, 1_000_002]
    disk.now_ms = 2_000_000
    assert number_of(signer.signed(TOPIC, b"{}")) == 2_000_000


def test_a_reserved_number_is_on_disk_before_use() -> None:
    disk = Disk()
    signer = disk.signer()
    for disk.now_ms in range(1_000_000, 1_200_000, 1000):
        assert number_of(signer.signed(TOPIC, b"{}")) <= disk.reserved
    assert disk.writes <= 5


@pytest.mark.parametrize("moved_ms", [0, -900_000, 10])
def test_numbers_grow_across_restarts_whatever_the_clock_says(moved_ms: int) -> None:
    disk = Disk()
    signer = disk.signer()
    last = max(number_of(signer.signed(TOPIC, b"{}")) for _ in range(5))
    disk.now_ms += moved_ms
    assert number_of(disk.signer().signed(TOPIC, b"{}")) > last


def test_the_store_keeps_the_reserved_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.signed_until == 0
    store.sign_until(1_764_000_000_000)
    store.close()
    assert Store(tmp_path).signed_until == 1_764_000_000_000


# --- the envelope ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        *(b"{}", b'{"state":"online"}', b'{"a":{"b":[1,{}]}}', '{"a":"Köln"}'.encode()),
        # texts and members that look like an envelope
        msgspec.json.encode({"a": '","signed":{"number":1}', "b": 'x"signed":{"number":7'}),
        b'{"algorithm":{"signed":{"number":1,"signatures":{}}}}',
        b'{"signed":{"number":1,"signatures":{}},"a":1}',
        b'{"a":1,"signed":{"number":1,"signatures":{}}}',
    ],
)
def test_a_signed_message_is_one_document_and_comes_back_byte_for_byte(message: bytes) -> None:
    keys = SigningKeys.generate()
    envelope = keys.sign(TOPIC, 7, message)
    payload = signed_messages.join(message, envelope)
    document = msgspec.json.decode(payload)
    assert document["signed"] == msgspec.to_builtins(envelope)
    assert document | {"signed": 0} == msgspec.json.decode(message) | {"signed": 0}
    cut, found = signed_messages.split(payload)
    assert cut == message
    assert signed_messages.parse(found) == envelope


@pytest.mark.parametrize(
    "payload",
    [
        *(
            b"",
            b"{}",
            b"[]",
            b'{"state":"online"}',
            b'"signed":{"number":',
            b'}"signed":{"number":}',
        ),
        msgspec.json.encode({"text": ',"signed":{"number":1,"signatures":{}}}'}),
        b'{"state":"online","signed":true}',
    ],
)
def test_a_payload_without_envelope_is_the_message(payload: bytes) -> None:
    assert signed_messages.split(payload) == (payload, b"")


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{}", b"[]", b"\xff", b"{" * 10_000, b'{"number":1,"signatures":{}}'),
        b'{"number":-1,"signatures":{"%s":"%s"}}' % (b"0" * 16, b"0" * 128),
        b'{"number":1,"signatures":{"%s":"%s"}}' % (b"0" * 16, b"0" * 127),
        b'{"number":1,"signatures":{"%s":"%s"}}' % (b"0" * 15, b"0" * 128),
        b'{"number":1,"signatures":{%s}}'
        % b",".join(b'"%016x":"%s"' % (n, b"0" * 128) for n in range(5)),
    ],
)
def test_a_malformed_signature_envelope_is_unreadable(line: bytes) -> None:
    with pytest.raises(WireError):
        signed_messages.parse(line)


# --- files ----------------------------------------------------------------------------------------


def test_keys_are_read_back_from_their_files(tmp_path: Path) -> None:
    keys = SigningKeys.generate().with_newer(SigningKeys.generate())
    private, public = tmp_path / "signing.key", tmp_path / "coordinator.pub"
    private.write_bytes(keys.encode())
    public.write_bytes(signed_messages.encode_public_keys(keys.public))
    assert (
        SigningKeys.read(private).public == keys.public == signed_messages.read_public_keys(public)
    )
    assert len(set(keys.public)) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_keys_that_openssl_made_are_read(tmp_path: Path) -> None:
    private, public = tmp_path / "signing.key", tmp_path / "coordinator.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert SigningKeys.read(private).public == signed_messages.read_public_keys(public)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "0 public keys"),
        (b"-----BEGIN PUBLIC KEY-----\n!!!\n-----END PUBLIC KEY-----", "0 public keys"),
        (b"-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----", "damaged"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "not an Ed25519 key"),
        (
            signed_messages.encode_public_keys([bytes(32)] * 5),
            "5 public keys in PEM, must be 1 to 4",
        ),
        (SigningKeys.generate().encode(), "0 public keys"),
        (b"\xff" * 100_000, "0 public keys"),
    ],
)
def test_a_wrong_file_of_public_keys_is_named(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "coordinator.pub"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=words) as error:
        signed_messages.read_public_keys(path)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        signed_messages.read_public_keys(path)


def test_a_wrong_file_of_private_keys_is_named(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    damaged = SigningKeys.generate().encode().replace(b"MC4C", b"MC4D")
    for text, words in ((pem, "Ed25519"), (public, "0 private keys"), (damaged, "damaged")):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=words) as error:
            SigningKeys.read(path)
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        SigningKeys.read(tmp_path / "absent.key")
