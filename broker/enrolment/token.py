"""Token: one line with which a device joins a fleet once. Read without `cryptography`.

    fedge://broker.example.org:8884/wearables/pi-1/SECRET.AUTHORITY

It contains the address of the enrolment service, the names of federation and device, a secret of
128 bits, and the SHA-256 of the authority's certificate: the device sends the secret only to a
server that this authority has certified.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import ssl
from dataclasses import dataclass
from typing import Self

from broker.protocol.topics import ID_PATTERN
from fedge.errors import ConfigError

SCHEME = "fedge://"
_SECRET_BYTES = 16
_TOKEN = re.compile(
    rf"{SCHEME}(?P<host>\[[0-9A-Fa-f:.]{{2,45}}\]|[A-Za-z0-9.-]{{1,253}}):(?P<port>[0-9]{{1,5}})"
    rf"/(?P<federation>{ID_PATTERN})/(?P<agent_id>{ID_PATTERN})"
    r"/(?P<secret>[A-Za-z0-9_-]{22})\.(?P<authority>[A-Za-z0-9_-]{43})",
    re.ASCII,
)


@dataclass(frozen=True)
class Token:
    """Content of a token.

    Attributes:
        host: host of the enrolment service.
        port: port of the enrolment service.
        federation: the device's federation.
        agent_id: the device's name.
        secret: secret that is valid once.
        authority: fingerprint of the fleet's authority, see `fingerprint`.
    """

    host: str
    port: int
    federation: str
    agent_id: str
    secret: str
    authority: str

    @property
    def address(self) -> str:
        """Address of the enrolment service: `host:port`, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        where = f"{SCHEME}{self.address}/{self.federation}/{self.agent_id}"
        return f"{where}/{self.secret}.{self.authority}"

    def __repr__(self) -> str:  # the secret must not appear in a log
        return f"Token({self.agent_id!r} of {self.federation!r})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a token.

        Raises:
            ConfigError: not a token, or only a part; the message does not show the text.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None or not 0 < int(match["port"]) < 65_536:
            raise ConfigError(
                "the token is damaged or incomplete: copy the whole line that "
                "`fedge broker enrol --token` printed, from fedge:// to its end"
            )
        who = (match["federation"], match["agent_id"])
        host, port = match["host"].strip("[]"), int(match["port"])
        return cls(host, port, *who, match["secret"], match["authority"])


def new_secret() -> str:
    """Returns 128 random bits as 22 letters."""
    return _text(secrets.token_bytes(_SECRET_BYTES))


def digest_of(secret: str) -> str:
    """Returns the stored hash of a secret. 128 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fingerprint(certificate: str) -> str:
    """Returns the SHA-256 of a certificate's DER form as 43 letters.

    Args:
        certificate: PEM.

    Raises:
        ConfigError: not a certificate.
    """
    try:
        der = ssl.PEM_cert_to_DER_cert(certificate.strip())
    except ValueError as error:
        raise ConfigError("the authority's certificate is damaged") from error
    return _text(hashlib.sha256(der).digest())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
