"""What a device without a certificate and the enrolment service say to each other.

    fedge/v1/<federation>/enrolment/<session>/request   the device's
    fedge/v1/<federation>/enrolment/<session>/answer    the service's

On a listener of its own, in a broker of its own, where nothing else is. A session is 128 random
bits, the device's client id there: the broker lets a client write and read below its own id only.
A device asks twice: first for the authority's certificate, on a connection to it knows not whom,
which it compares with its token; then, on one that this authority vouches for, with its secret.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from broker.protocol.topics import Topics
from broker.security.bundle import Bundle
from fedge.errors import WireError

MAX_REQUEST_BYTES = 8 << 10
MAX_ANSWER_BYTES = 64 << 10
#: Requests that the service hears in one session. A device makes one, and repeats it when it hears
#: nothing; after so many it begins another session.
PER_SESSION = 5
_T = TypeVar("_T", bound=msgspec.Struct)
_SESSION = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Request(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A device's: the authority's certificate, or a certificate of its own.

    Attributes:
        secret: of a token; empty: only the authority's certificate is asked for.
        csr: PEM of a PKCS #10 request; only its public key and its signature count.
    """

    secret: Annotated[str, Meta(max_length=64)] = ""
    csr: Annotated[str, Meta(max_length=4096)] = ""

    def __repr__(self) -> str:  # the secret must not end in a log
        return "Request(...)"


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The service's; one of the three.

    Attributes:
        authority: PEM of the fleet's authority.
        bundle: all that the device needs but its key.
        refused: why not, in words.
    """

    authority: Annotated[str, Meta(max_length=16_384)] = ""
    bundle: Bundle | None = None
    refused: Annotated[str, Meta(max_length=500)] = ""


@dataclass(frozen=True)
class EnrolmentTopics:
    """Topics of enrolment in one federation."""

    federation: str

    @property
    def root(self) -> str:
        """`fedge/v1/<federation>/enrolment/`."""
        return f"{Topics(self.federation).root}enrolment/"

    @property
    def requests(self) -> str:
        """Filter for what all devices ask."""
        return self.request("+")

    def request(self, session: str) -> str:
        """Where a device asks."""
        return f"{self.root}{session}/request"

    def answer(self, session: str) -> str:
        """Where it is answered."""
        return f"{self.root}{session}/answer"

    def session_of(self, topic: str) -> str:
        """Whose request it is.

        Raises:
            WireError: not a topic of requests, or no session of ours.
        """
        session = topic.removeprefix(self.root).removesuffix("/request")
        if topic != self.request(session) or not _SESSION.fullmatch(session):
            raise WireError(f"not a topic of enrolment: {topic[:120]!r}")
        return session


def new_session() -> str:
    """A client id that nobody guesses."""
    return secrets.token_hex(16)


def decode_request(payload: bytes) -> Request:
    """A device's request.

    Raises:
        WireError: too long, or none.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise WireError(f"a request of {len(payload)} bytes; the limit is {MAX_REQUEST_BYTES}")
    return _decode(payload, Request)


def decode_answer(payload: bytes) -> Answer:
    """The service's answer.

    Raises:
        WireError: too long, or none.
    """
    if len(payload) > MAX_ANSWER_BYTES:
        raise WireError(f"an answer of {len(payload)} bytes; the limit is {MAX_ANSWER_BYTES}")
    return _decode(payload, Answer)


def _decode(payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not an enrolment {kind.__name__.lower()}: {error}") from error
