"""Ed25519 verification: RFC 8032's own vectors, and the same verdicts as OpenSSL's."""

from __future__ import annotations

import random

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.protocol.ed25519 import is_valid

#: RFC 8032, section 7.1, tests 1 to 3: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701c"
        "f9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0"
        "f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f76098"
        "4dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def openssl(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_standard_are_valid(public: str, message: str, signature: str) -> None:
    key, text, mark = (bytes.fromhex(part) for part in (public, message, signature))
    assert is_valid(key, text, mark)
    assert not is_valid(key, text + b" ", mark)


def test_results_equal_those_of_openssl_also_on_damaged_input() -> None:
    rng = random.Random(1)
    verdicts = []
    for size in range(60):
        key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        message = rng.randbytes(size)
        parts = [bytearray(part) for part in (raw(key), message, key.sign(message))]
        if size % 2:
            part = parts[rng.randrange(3)]
            if part:
                part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
        public, message, signature = (bytes(part) for part in parts)
        verdicts.append(is_valid(public, message, signature))
        assert verdicts[-1] == openssl(public, message, signature)
    assert 30 <= sum(verdicts) < 60


@pytest.mark.parametrize(
    "name", ["S above the order", "R not reduced", "neutral key", "key of order 2", "no point"]
)
def test_unusual_encodings_are_verified_as_by_openssl(name: str) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public, message, signature = raw(key), b"message", key.sign(b"message")
    if name == "S above the order":  # the same point, another signature
        s = int.from_bytes(signature[32:], "little") + ORDER
        signature = signature[:32] + s.to_bytes(32, "little")
    elif name == "R not reduced":
        signature = (PRIME + 1).to_bytes(32, "little") + bytes(32)
    elif name == "neutral key":  # S = 0 and R = neutral: an equation that holds for any message
        public = (1).to_bytes(32, "little")
        signature = public + bytes(32)
    elif name == "key of order 2":
        public = (PRIME - 1).to_bytes(32, "little")
        signature = (1).to_bytes(32, "little") + bytes(32)
    else:
        public = (2).to_bytes(32, "little")
    assert is_valid(public, message, signature) == openssl(public, message, signature)


@pytest.mark.parametrize(("key", "mark"), [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_wrong_lengths_are_not_valid(key: int, mark: int) -> None:
    assert not is_valid(bytes(key), b"", bytes(mark))
