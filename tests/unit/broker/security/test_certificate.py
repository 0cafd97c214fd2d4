"""Reading names and dates of certificates, good ones and rubbish."""

from __future__ import annotations

import random
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.security.certificate import parse_certificate, read_certificate
from broker.security.certificate_authority import Authority

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def issued(hosts: list[str], days: int = 30) -> bytes:
    root = Authority.create("houses", NOW)
    authority = Authority(root.certificate, root.key)
    return authority.issue("fedge broker", "server", NOW, days, hosts).certificate


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def test_a_certificate_of_the_authority_is_read() -> None:
    found = parse_certificate(der(issued(["broker.example", "192.0.2.7", "2001:db8::1"])))
    assert found.name == "fedge broker"
    assert found.issuer.startswith("fedge fleet ")
    assert found.hosts == ("broker.example", "192.0.2.7", "2001:db8::1")
    assert found.not_before <= NOW
    assert found.not_after == NOW + timedelta(days=30)


def test_dates_after_2049_are_read() -> None:
    found = parse_certificate(der(issued(["a"], days=365 * 40)))
    assert found.not_after.year == 2066


def test_the_first_certificate_of_a_file_is_read_wherever_the_key_is(tmp_path: Path) -> None:
    root = Authority.create("houses", NOW)
    made = Authority(root.certificate, root.key).issue("pi-1", "client", NOW, 5)
    (tmp_path / "agent.pem").write_bytes(made.key + made.certificate + root.certificate)
    assert read_certificate(tmp_path / "agent.pem").name == "pi-1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no certificate"),
        (b"\xff\xfe", "holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
        (b"-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n", "file.pem"),
    ],
)
def test_a_file_without_a_certificate_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_certificate(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_certificate(tmp_path / "missing.pem")


def test_random_bytes_are_not_a_certificate() -> None:
    good = der(issued(["broker.example"]))
    rng = random.Random(0)
    survived = 0
    for _ in range(2000):
        data = bytearray(good[: rng.choice([len(good), rng.randrange(len(good))])])
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            parse_certificate(bytes(data))
            survived += 1
        except ValueError:
            continue
    assert survived < 2000  # nothing but a ValueError came out
