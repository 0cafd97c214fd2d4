"""What an operator may write about the broker, and what the messages say."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from broker.link.settings import BrokerSettings, TlsSettings
from broker.security.certificate_authority import Authority
from broker.security.fleet import utc_now
from fedge.errors import ConfigError
from tests.users import as_nobody


def test_the_port_follows_tls_unless_it_is_given() -> None:
    assert BrokerSettings().port == 1883
    assert BrokerSettings(tls=TlsSettings()).port == 8883
    assert BrokerSettings(tls=TlsSettings(), port=443).port == 443
    assert BrokerSettings(host="::1").address == "[::1]:1883"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70_000}, "port must be 1..65535, got 70000"),
        ({"keepalive_s": 0}, "keepalive_s must be 2..3600, got 0"),
        ({"connect_timeout_s": float("nan")}, "connect_timeout_s must be 0.1..120, got nan"),
        ({"max_payload_bytes": 10}, "max_payload_bytes must be 1024"),
        ({"backoff_min_s": 5.0, "backoff_max_s": 1.0}, "backoff_max_s must be 5..86400, got 1"),
        ({"host": ""}, "host must be a name"),
        ({"host": "mqtts://a"}, "without scheme, login or port, got 'mqtts://a'"),
        ({"host": "mqtts://u:secret@a"}, "login or port, got '…@a'"),
        ({"host": "a:8883"}, "host must be a name"),
        ({"host": "[::1]"}, "host must be a name"),
        ({"password_file": "x"}, "needs a username"),
        ({"username": "u", "password_file": "x", "password_env": "y"}, "not both"),
        ({"tls": {"cert_file": "x"}}, "must be given together"),
        ({"passwrd": "x"}, "unknown field `passwrd`"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(values, BrokerSettings)


def test_the_password_comes_from_the_first_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("s3cret with spaces \n# a note\n")
    settings = BrokerSettings(username="pi", password_file=str(file))
    assert settings.secrets().password == "s3cret with spaces "
    assert "s3cret" not in repr(settings)


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BrokerSettings(username="pi", password_env="FEDGE_TEST_PASSWORD")
    with pytest.raises(ConfigError, match="FEDGE_TEST_PASSWORD"):
        settings.secrets()
    monkeypatch.setenv("FEDGE_TEST_PASSWORD", "s3cret")
    assert settings.secrets().password == "s3cret"
    assert BrokerSettings().secrets().password is None


def test_an_unusable_password_file_is_named(tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("\n")
    for file, reason in ((missing, "No such file"), (empty, "is empty")):
        with pytest.raises(ConfigError, match=rf"{file}.*{reason}"):
            BrokerSettings(username="pi", password_file=str(file)).secrets()


def test_unusable_certificates_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.pem does not exist"):
        TlsSettings(ca_file=str(tmp_path / "missing.pem")).context()
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca_file .*garbage\.pem is unusable"):
        TlsSettings(ca_file=str(garbage)).context()
    with pytest.raises(ConfigError, match=r"cert_file .*garbage\.pem"):
        TlsSettings(cert_file=str(garbage), key_file=str(garbage)).context()


def test_an_encrypted_key_is_refused_without_asking_for_a_passphrase(tmp_path: Path) -> None:
    issued = Authority.create("houses", utc_now())
    encrypted = serialization.load_pem_private_key(issued.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    (file := tmp_path / "pi.pem").write_bytes(issued.certificate + encrypted)
    with pytest.raises(ConfigError, match=r"key_file .*pi\.pem is encrypted.*openssl pkey"):
        TlsSettings(cert_file=str(file), key_file=str(file)).context()


def test_unreadable_certificates_are_named(tmp_path: Path) -> None:
    (folder := tmp_path / "keys").mkdir(mode=0)
    (tmp_path / "seen.pem").touch(0)
    with as_nobody():
        for file in (folder / "ca.crt", tmp_path / "seen.pem"):
            with pytest.raises(ConfigError, match=rf"tls: {file} cannot be read: Permission"):
                TlsSettings(ca_file=str(file)).context()


def test_certificates_are_always_checked() -> None:
    context = TlsSettings().context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
