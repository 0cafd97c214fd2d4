"""Messages between a device without a certificate and the enrolment service.

    fedge/v1/<federation>/enrolment/<session>/request   from the device
    fedge/v1/<federation>/enrolment/<session>/answer    from the service

They travel over a separate broker. A session is 128 random bits, the device's client id: the broker
lets a client use topics below its own id only. A device asks twice: first for the authority's
certificate, on an unauthenticated connection, and compares it with the token; then with its secret,
on a connection that this authority has certified.
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
#: Requests that the service answers in one session. A device repeats its request when it gets no
#: answer; after so many requests it starts another session.
PER_SESSION = 5
_T = TypeVar("_T", bound=msgspec.Struct)
_SESSION = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Request(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Request for the authority's certificate, or for a certificate of the device.

    Attributes:
        secret: secret of a token; empty: asks only for the authority's certificate.
        csr: PEM of a PKCS #10 request; only its public key and its signature are used.
    """

    secret: Annotated[str, Meta(max_length=64)] = ""
    csr: Annotated[str, Meta(max_length=4096)] = ""

    def __repr__(self) -> str:  # the secret must not appear in a log
        return "Request(...)"


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Answer of the service; exactly one field is set.

    Attributes:
        authority: certificate of the fleet's authority, PEM.
        bundle: the device's bundle without its key.
        refused: reason of a refusal, human-readable.
        busy: the service has too many requests for now: ask again later.
    """

    authority: Annotated[str, Meta(max_length=16_384)] = ""
    bundle: Bundle | None = None
    refused: Annotated[str, Meta(max_length=500)] = ""
    busy: bool = False


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
        """Filter of all devices' requests."""
        return self.request("+")

    def request(self, session: str) -> str:
        """Returns the topic of a device's requests."""
        return f"{self.root}{session}/request"

    def answer(self, session: str) -> str:
        """Returns the topic of the answers."""
        return f"{self.root}{session}/answer"

    def session_of(self, topic: str) -> str:
        """Returns the session of a request.

        Raises:
            WireError: not a topic of requests, or not a valid session.
        """
        session = topic.removeprefix(self.root).removesuffix("/request")
        if topic != self.request(session) or not _SESSION.fullmatch(session):
            raise WireError(f"not a topic of enrolment: {topic[:120]!r}")
        return session


def new_session() -> str:
    """Returns a client id that cannot be guessed."""
    return secrets.token_hex(16)


def decode_request(payload: bytes) -> Request:
    """Decodes a device's request.

    Raises:
        WireError: too long, or not a request.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        raise WireError(f"request has {len(payload)} bytes; limit {MAX_REQUEST_BYTES}")
    return _decode(payload, Request)


def decode_answer(payload: bytes) -> Answer:
    """Decodes the service's answer.

    Raises:
        WireError: too long, or not an answer.
    """
    if len(payload) > MAX_ANSWER_BYTES:
        raise WireError(f"answer has {len(payload)} bytes; limit {MAX_ANSWER_BYTES}")
    return _decode(payload, Answer)


def _decode(payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not an enrolment {kind.__name__.lower()}: {error}") from error
