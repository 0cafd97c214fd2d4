"""Reader of a certificate's names and dates, for the doctor: a part of X.509 (RFC 5280 §4.1).

Devices have no `cryptography`, and Python's `ssl` reads neither untrusted certificates nor the
client's own. Nothing here decides about trust: OpenSSL does that.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_COMMON_NAME = bytes.fromhex("550403")  # 2.5.4.3
_ALTERNATIVE_NAMES = bytes.fromhex("551d11")  # 2.5.29.17
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
#: A certificate has a few kilobytes.
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Certificate:
    """Content of a certificate.

    Attributes:
        name: common name of the subject.
        issuer: common name of the signing authority.
        hosts: DNS names and addresses of the subject.
        not_before, not_after: validity, UTC.
    """

    name: str
    issuer: str
    hosts: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def read_certificate(path: Path) -> Certificate:
    """Reads the first certificate in a PEM file, which may hold a key and other certificates.

    Raises:
        ValueError: the file cannot be read or holds no certificate.
    """
    try:
        with path.open(encoding="ascii", errors="replace") as file:  # bundles have comments
            text = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    start, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= start < end:
        raise ValueError(f"{path} holds no certificate")
    try:
        return parse_certificate(ssl.PEM_cert_to_DER_cert(text[start : end + len(_END)] + "\n"))
    except ValueError as error:  # also raised by base64
        raise ValueError(f"{path}: {error}") from error


def parse_certificate(der: bytes) -> Certificate:
    """Parses a certificate in DER.

    Raises:
        ValueError: not a certificate.
    """
    try:
        return _parse(der)
    except (IndexError, StopIteration, ValueError, OverflowError) as error:
        raise ValueError(f"not a certificate: {error or type(error).__name__}") from error


def _parse(der: bytes) -> Certificate:
    _, whole = next(_items(der))
    _, signed = next(_items(whole))
    fields = list(_items(signed))
    if fields[0][0] == _VERSION:
        del fields[0]
    # serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo, …
    issuer, validity, subject = (content for _, content in fields[2:5])
    start, end = (_time(tag, content) for tag, content in _items(validity))
    hosts: tuple[str, ...] = ()
    for tag, content in fields[6:]:
        if tag == _EXTENSIONS:
            hosts = tuple(_hosts(content))
    return Certificate(_common_name(subject), _common_name(issuer), hosts, start, end)


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields tag and content of each value in `data`."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4:
                raise ValueError("a length of more than four bytes")
            length, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + length > len(data):
            raise ValueError("truncated")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # RFC 5280 §4.1.2.5.1: 50 to 99 mean 1950 to 1999
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a date of unknown format")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _common_name(name: bytes) -> str:
    for _, part in _items(name):
        for _, pair in _items(part):
            (_, kind), (_, value) = _items(pair)
            if kind == _COMMON_NAME:
                return value.decode("utf-8", errors="replace")
    return ""


def _hosts(extensions: bytes) -> Iterator[str]:
    _, listed = next(_items(extensions))
    for _, extension in _items(listed):
        parts = list(_items(extension))
        if parts[0][1] != _ALTERNATIVE_NAMES:
            continue
        _, names = next(_items(parts[-1][1]))
        for tag, content in _items(names):
            if tag == _DNS_NAME:
                yield content.decode("ascii", errors="replace")
            elif tag == _IP_ADDRESS:
                yield str(ipaddress.ip_address(content))
