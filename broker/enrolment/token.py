"""A token: one line that a device shows once to join a fleet. Read without cryptography.

    fedge://broker.example.org:8884/wearables/pi-1/SECRET.AUTHORITY

Where to ask, as whom, a secret of 128 bits, and the SHA-256 of the authority's certificate: the
device sends the secret to nobody who cannot prove that this authority vouches for it.
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
    """What stands in a token.

    Attributes:
        host: of the enrolment service.
        port: of it.
        federation: that the device joins.
        agent_id: the name it will have.
        secret: what lets it in, once.
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
        """Of the enrolment service: `host:port`, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        where = f"{SCHEME}{self.address}/{self.federation}/{self.agent_id}"
        return f"{where}/{self.secret}.{self.authority}"

    def __repr__(self) -> str:  # the secret must not end in a log
        return f"Token({self.agent_id!r} of {self.federation!r})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The token that `text` is.

        Raises:
            ConfigError: it is none, or only a part of one; does not repeat it.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None or not 0 < int(match["port"]) < 65_536:
            raise ConfigError(
                "the token is damaged or only half there: copy the whole line that "
                "`fedge broker enrol --token` printed, from fedge:// to its end"
            )
        who = (match["federation"], match["agent_id"])
        host, port = match["host"].strip("[]"), int(match["port"])
        return cls(host, port, *who, match["secret"], match["authority"])


def new_secret() -> str:
    """128 random bits, as 22 letters."""
    return _text(secrets.token_bytes(_SECRET_BYTES))


def digest_of(secret: str) -> str:
    """What is kept of a secret. A plain hash will do: nobody tries 2^128 of them."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate's DER form, as 43 letters.

    Args:
        certificate: PEM.

    Raises:
        ConfigError: no certificate.
    """
    try:
        der = ssl.PEM_cert_to_DER_cert(certificate.strip())
    except ValueError as error:
        raise ConfigError("the authority's certificate is damaged") from error
    return _text(hashlib.sha256(der).digest())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
