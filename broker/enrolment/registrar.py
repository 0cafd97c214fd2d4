"""Who answers devices that come with a token: what is asked, how often, and what is said of it.

A state machine: it knows no files and no clock. Everybody may reach it, so everything is bounded:
a session (one connection to the enrolment listener) is heard a few times, all together so many
times a second, and a flood of refusals makes few lines in the log.
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

#: Requests of all sessions: signing one takes 2 ms, and a fleet of a thousand comes within minutes.
PER_SECOND, AT_ONCE = 20.0, 60.0
#: Lines about refusals.
_LINES_PER_SECOND, _LINES_AT_ONCE = 0.2, 20.0
_SESSIONS = 1000
_ANSWER_EXPIRY_S = 120


class Bucket:
    """Lets through so many a second, and at first so many at once."""

    def __init__(self, per_second: float, at_once: float) -> None:
        self._rate, self._most = per_second, at_once
        self._level, self._at_s = at_once, 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more may pass."""
        self._level = min(self._most, self._level + max(0.0, now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._level < 1:
            return False
        self._level -= 1
        return True


@dataclass(frozen=True)
class Granted:
    """The register has let a device in."""

    session: str
    bundle: Bundle


@dataclass(frozen=True)
class Refused:
    """The register has not."""

    session: str
    reason: str


@dataclass(frozen=True)
class Redeem:
    """Ask the register, and come back with `Granted` or `Refused`."""

    session: str
    secret: str = field(repr=False)
    csr: str = field(repr=False)


@dataclass(frozen=True)
class Note:
    """A line for the log."""

    text: str


Action = LinkAction | Redeem | Note


class Registrar:
    """Answers requests on the enrolment topics.

    Args:
        federation: that devices join.
        authority: PEM of its authority, told to everybody who asks.
    """

    def __init__(self, federation: str, authority: str) -> None:
        self._topics = EnrolmentTopics(federation)
        self._authority = authority
        self._heard: OrderedDict[str, int] = OrderedDict()
        self._requests = Bucket(PER_SECOND, AT_ONCE)
        self._lines = Bucket(_LINES_PER_SECOND, _LINES_AT_ONCE)
        self._unsaid = 0

    def handle(self, event: LinkedEvent | Granted | Refused, now_s: float) -> list[Action]:
        """What to do about an event at monotonic time `now_s`."""
        match event:
            case Started():
                return [Subscribe(self._topics.requests)]
            case MessageArrived(topic, payload) if payload:
                return self._asked(topic, payload, now_s)
            case Granted(session, bundle):
                return [self._answer(session, Answer(bundle=bundle))]
            case Refused(session, reason):
                answer = self._answer(session, Answer(refused=reason))
                return [answer, *self._note(f"a device was refused: {reason}", now_s)]
            case _:
                return []

    def _asked(self, topic: str, payload: bytes, now_s: float) -> list[Action]:
        try:
            session = self._topics.session_of(topic)
        except WireError as error:
            return self._note(f"a request was ignored: {error}", now_s)
        # A request that asked to be retained must not stay: nobody may fill the broker with them.
        clear = Publish(topic, b"", retain=True)
        if not self._may_ask(session, now_s):
            return [clear, *self._note("requests were ignored: too many at once", now_s)]
        try:
            request = decode_request(payload)
        except WireError as error:
            answer = self._answer(session, Answer(refused=str(error)[:200]))
            return [clear, answer, *self._note(f"a request was refused: {error}", now_s)]
        if not request.secret:
            return [clear, self._answer(session, Answer(authority=self._authority))]
        return [clear, Redeem(session, request.secret, request.csr)]

    def _may_ask(self, session: str, now_s: float) -> bool:
        heard = self._heard.pop(session, 0)
        # What the crowd leaves no room for does not count against the session.
        may = heard < PER_SESSION and self._requests.take(now_s)
        self._heard[session] = heard + may
        if len(self._heard) > _SESSIONS:
            self._heard.popitem(last=False)
        return may

    def _answer(self, session: str, answer: Answer) -> Publish:
        payload = msgspec.json.encode(answer)
        return Publish(self._topics.answer(session), payload, expiry_s=_ANSWER_EXPIRY_S)

    def _note(self, text: str, now_s: float) -> list[Action]:
        if not self._lines.take(now_s):
            self._unsaid += 1
            return []
        unsaid, self._unsaid = self._unsaid, 0
        return [Note(f"{text} (and {unsaid} more before)" if unsaid else text)]
