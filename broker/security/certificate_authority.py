"""Certificate authority of a fleet: keys and certificates (extra `secure`: cryptography)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast

from broker.security.mosquitto.config import address_of
from fedge.errors import ConfigError

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as _error:
    raise ConfigError(
        "certificates need the package cryptography: install fedge with its extra, fedge[secure]"
    ) from _error

#: A device whose clock is a day slow (no battery, no network yet) can still connect.
_BACKDATED = timedelta(days=1)
#: Validity of the authority and of its list of revoked certificates. An expired list would lock
#: out the whole fleet.
_AUTHORITY_DAYS = 36_500
#: RFC 1123 §2.1. The last part is not all digits: that would be a mistyped address.
_HOST_NAME = re.compile(
    r"(?!(.*\.)?[0-9]+\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*", re.ASCII
)

Purpose = Literal["server", "client"]


@dataclass(frozen=True)
class Issued:
    """New certificate and its key, which is stored nowhere else.

    Attributes:
        certificate: PEM.
        key: PEM, not encrypted; empty when the device made it.
        serial: hexadecimal.
        not_before, not_after: validity, UTC.
    """

    certificate: bytes
    key: bytes
    serial: str
    not_before: datetime
    not_after: datetime


def check_host(host: str) -> str:
    """Returns `host` if a certificate can name it.

    Raises:
        ConfigError: neither a host name nor an address.
    """
    if address_of(host) is None and (len(host) > 253 or not _HOST_NAME.fullmatch(host)):
        raise ConfigError(f"host {host[:80]!r} is neither a host name nor an IP address")
    return host


def requested_key(request: str) -> ec.EllipticCurvePublicKey:
    """Returns the public key of a certificate request, which its private key has signed.

    Args:
        request: PEM (PKCS #10).

    Raises:
        ConfigError: not a request, not signed by its own key, or not a P-256 key.
    """
    try:
        loaded = x509.load_pem_x509_csr(request.encode())
        key = loaded.public_key()
        is_signed = loaded.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the certificate request is damaged") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ConfigError("the certificate request is not for a P-256 key")
    if not is_signed:
        raise ConfigError("the certificate request is not signed by its own key")
    return key


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """Returns the SHA-256 of a public key, hexadecimal."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


class Authority:
    """Signs the certificates of one fleet.

    Args:
        certificate: PEM.
        key: PEM.

    Raises:
        ConfigError: damaged, or certificate and key do not belong together.
    """

    def __init__(self, certificate: bytes, key: bytes) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
            loaded = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the authority's certificate or key is damaged: {error}") from error
        if loaded.public_key() != self._certificate.public_key():
            raise ConfigError("the authority's certificate and key do not belong together")
        self._key = cast("ec.EllipticCurvePrivateKey", loaded)

    @staticmethod
    def create(federation: str, now: datetime) -> Issued:
        """Creates a new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # Part of the serial in the name: authorities of two fleets have different names.
        name = _name(f"fedge fleet {serial & 0xFFFFFFFF:08x}", federation)
        builder = _builder(name, name, key.public_key(), serial, now, _AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage("sign certificates"), True)
        builder = _with_authority(builder, key)
        return _issued(builder.sign(key, hashes.SHA256()), key)

    @property
    def federation(self) -> str:
        """Federation of the fleet."""
        names = self._certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(names[0].value) if names else ""

    @property
    def list_name(self) -> str:
        """Name of the files in which OpenSSL looks for this authority's lists (without `.r0`).

        The hash of X509_NAME_hash: the first four bytes of the SHA-1 of the subject's canonical
        form, which has lower-case letters and no outer header (openssl-rehash(1)).
        """
        lower = x509.Name(
            [x509.NameAttribute(part.oid, str(part.value).lower()) for part in self._subject]
        )
        encoded = lower.public_bytes()
        header = 2 if encoded[1] < 0x80 else 2 + (encoded[1] & 0x7F)
        digest = hashlib.sha1(encoded[header:], usedforsecurity=False).digest()
        return f"{int.from_bytes(digest[:4], 'little'):08x}"

    @property
    def _subject(self) -> x509.Name:
        return self._certificate.subject

    def issue(
        self, name: str, purpose: Purpose, now: datetime, days: int, hosts: Sequence[str] = ()
    ) -> Issued:
        """Makes a key and a certificate for it.

        Args:
            name: the certificate's name; for clients their name at the broker.
            purpose: a device cannot use its certificate as a server, nor the broker as a client.
            now: the time.
            days: validity from now on.
            hosts: names and addresses of a server.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return _issued(self._sign(name, purpose, key.public_key(), now, days, hosts), key)

    def certify(self, request: str, name: str, now: datetime, days: int) -> Issued:
        """Makes a client certificate for a key that the device made.

        Args:
            request: PEM (PKCS #10). Only its key is used; name and rights are those given here.
            name: the certificate's name.
            now: the time.
            days: validity from now on.

        Raises:
            ConfigError: not a request, not signed by its own key, or not a P-256 key.
        """
        key = requested_key(request)
        return _issued(self._sign(name, "client", key, now, days, ()), None)

    def _sign(
        self,
        name: str,
        purpose: Purpose,
        key: ec.EllipticCurvePublicKey,
        now: datetime,
        days: int,
        hosts: Sequence[str],
    ) -> x509.Certificate:
        subject = _name(name, self.federation)
        serial = x509.random_serial_number()
        builder = _builder(subject, self._certificate.subject, key, serial, now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage("authenticate"), True)
        side = {
            "server": ExtendedKeyUsageOID.SERVER_AUTH,
            "client": ExtendedKeyUsageOID.CLIENT_AUTH,
        }[purpose]
        builder = builder.add_extension(x509.ExtendedKeyUsage([side]), False)
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        builder = _with_authority(builder, self._key)
        return builder.sign(self._key, hashes.SHA256())

    def revocations(self, revoked: Iterable[tuple[str, datetime]], updated: datetime) -> bytes:
        """Returns the list of revoked certificates, PEM.

        Args:
            revoked: serial and time of each.
            updated: later than that of any earlier list: OpenSSL uses the latest list it knows.
        """
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self._certificate.subject,
            last_update=updated,
            next_update=self._certificate.not_valid_after_utc,
            revoked_certificates=[
                x509.RevokedCertificateBuilder(int(serial, 16), when).build()
                for serial, when in revoked
            ],
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, False)
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def _name(common: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    address = address_of(host)
    return x509.DNSName(host) if address is None else x509.IPAddress(address)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=serial,
        not_valid_before=now - _BACKDATED,
        not_valid_after=now + timedelta(days=days),
    ).add_extension(identifier, False)


def _with_authority(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return builder.add_extension(identifier, False)


def _usage(what: Literal["sign certificates", "authenticate"]) -> x509.KeyUsage:
    signs = what == "sign certificates"
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None) -> Issued:
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        b"" if key is None else _key_pem(key),
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
