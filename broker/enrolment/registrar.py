"""State machine of the enrolment service: answers requests, limits their rate, logs refusals.

It knows no files and no clock. Strangers can reach it, so all use is limited: requests of a session
(one connection to the enrolment listener), requests per second of all sessions together, and log
lines about refusals.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from broker.enrolment.messages import PER_SESSION, Answer, EnrolmentTopics, decode_request
from broker.security.bundle import Bundle
from broker.service.events import (
    LinkAction,
    LinkedEvent,
    MessageArrived,
    Publish,
    Started,
    Subscribe,
)
from fedge.errors import WireError
from fedge.limits import TokenBucket

#: Rate and burst of all sessions' requests: signing takes 2 ms, and a fleet of a thousand devices
#: enrols within minutes.
PER_SECOND, AT_ONCE = 20.0, 60.0
#: Rate and burst of answers to those who are more.
BUSY_PER_SECOND, BUSY_AT_ONCE = 100.0, 200.0
#: Rate and burst of log lines about refusals.
_LINES_PER_SECOND, _LINES_AT_ONCE = 0.2, 20.0
_SESSIONS = 1000
_ANSWER_EXPIRY_S = 120


@dataclass(frozen=True)
class Granted:
    """Event: a token was redeemed."""

    session: str
    bundle: Bundle


@dataclass(frozen=True)
class Refused:
    """Event: a token was refused."""

    session: str
    reason: str


@dataclass(frozen=True)
class Redeem:
    """Action: redeem a token; the result is `Granted` or `Refused`."""

    session: str
    secret: str = field(repr=False)
    csr: str = field(repr=False)


@dataclass(frozen=True)
class Note:
    """Action: log a warning."""

    text: str


Action = LinkAction | Redeem | Note


class Registrar:
    """Answers requests on the enrolment topics.

    Args:
        federation: the devices' federation.
        authority: certificate of the fleet's authority, PEM; sent to every client that asks.
    """

    def __init__(self, federation: str, authority: str) -> None:
        self._topics = EnrolmentTopics(federation)
        self._authority = authority
        self._requests_by_session: OrderedDict[str, int] = OrderedDict()
        self._rate = TokenBucket(PER_SECOND, AT_ONCE)
        self._busy = TokenBucket(BUSY_PER_SECOND, BUSY_AT_ONCE)
        self._lines = TokenBucket(_LINES_PER_SECOND, _LINES_AT_ONCE)
        self._suppressed = 0

    def handle(self, event: LinkedEvent | Granted | Refused, now_s: float) -> list[Action]:
        """Returns the actions for an event at monotonic time `now_s`."""
        match event:
            case Started():
                return [Subscribe(self._topics.requests)]
            case MessageArrived(topic, payload) if payload:
                return self._on_request(topic, payload, now_s)
            case Granted(session, bundle):
                return [self._answer(session, Answer(bundle=bundle))]
            case Refused(session, reason):
                answer = self._answer(session, Answer(refused=reason))
                return [answer, *self._note(f"a device was refused: {reason}", now_s)]
            case _:
                return []

    def _on_request(self, topic: str, payload: bytes, now_s: float) -> list[Action]:
        try:
            session = self._topics.session_of(topic)
        except WireError as error:
            return self._note(f"a request was ignored: {error}", now_s)
        # Deletes a request that was sent as retained: such requests must not fill the broker.
        clear = Publish(topic, b"", retain=True)
        if self._requests_by_session.get(session, 0) >= PER_SESSION:
            return [clear, *self._note("requests were ignored: rate limit reached", now_s)]
        if not self._may_ask(session, now_s):
            return [clear, *self._say_busy(session, now_s)]
        try:
            request = decode_request(payload)
        except WireError as error:
            answer = self._answer(session, Answer(refused=str(error)[:200]))
            return [clear, answer, *self._note(f"a request was refused: {error}", now_s)]
        if not request.secret:
            return [clear, self._answer(session, Answer(authority=self._authority))]
        return [clear, Redeem(session, request.secret, request.csr)]

    def _may_ask(self, session: str, now_s: float) -> bool:
        count = self._requests_by_session.pop(session, 0)
        # A request refused by the common rate limit does not count against the session.
        is_allowed = self._rate.take(now_s)
        self._requests_by_session[session] = count + is_allowed
        if len(self._requests_by_session) > _SESSIONS:
            self._requests_by_session.popitem(last=False)
        return is_allowed

    def _say_busy(self, session: str, now_s: float) -> list[Action]:
        """Asks a device to come back later, unless there are too many of them as well."""
        noted = self._note("devices were told to ask again later: rate limit reached", now_s)
        if not self._busy.take(now_s):
            return noted
        return [self._answer(session, Answer(busy=True)), *noted]

    def _answer(self, session: str, answer: Answer) -> Publish:
        payload = msgspec.json.encode(answer)
        return Publish(self._topics.answer(session), payload, expiry_s=_ANSWER_EXPIRY_S)

    def _note(self, text: str, now_s: float) -> list[Action]:
        if not self._lines.take(now_s):
            self._suppressed += 1
            return []
        suppressed, self._suppressed = self._suppressed, 0
        return [Note(f"{text} ({suppressed} earlier lines not logged)" if suppressed else text)]
