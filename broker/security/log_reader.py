"""Reader of Mosquitto's log: reports refused connections, publications, wills and subscriptions.

Mosquitto logs a refused publication only as a debug message, and does not log that it refuses a
subscription or a will: these are compared with the fleet's access rules.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from broker.security.access_control import may_read, may_write
from broker.security.mosquitto.dynamic_security import ADMINISTRATOR
from broker.security.register import Register, all_members

_DENIED = re.compile(
    r"Denied PUBLISH from (?P<who>\S+) \(.*?'(?P<topic>.*)', \.\.\. \((?P<size>\d+)"
)
_CONNECTED = re.compile(r"New client connected from (?P<where>\S+) as (?P<who>\S+) \(")
_WILL = re.compile(r"Will message specified \(")
_INDENTED = re.compile(r"\t(?P<topic>\S+)$")
_SUBSCRIBES = re.compile(r"Received SUBSCRIBE from (?P<who>\S+)$")
_SUBSCRIBED = re.compile(r"\t(?P<filter>\S+) \((?:QoS [012]|denied)\)$")
_NO_TLS = re.compile(r"Client connection from (?P<where>\S+) failed: .*::(?P<why>[^:]+?)\.?$")
_TLS = re.compile(r"OpenSSL Error.*::(?P<why>[^:]+)$")
_TOO_LARGE = re.compile(r"Client (?P<who>\S+) .*disconnected.*(?:oversize|too large)")
_NOT_ALLOWED = re.compile(r"Client (?P<who>\S+) .*disconnected.*not authorised")
_TWICE = re.compile(r"Client (?P<who>\S+) .*(?:already connected, closing old|session taken over)")
_FULL = re.compile(
    r"connection from (?P<where>\S+) denied.*max_connections|max_connections exceeded"
)
_TLS_REASONS = {
    "peer did not return a certificate": "client sent no certificate",
    "certificate verify failed": "client certificate is foreign, expired, not yet valid or revoked",
    "wrong version number": "client does not speak TLS",
    "http request": "client does not speak TLS",
    "unsupported protocol": "client speaks only an old version of TLS",
    "no shared cipher": "client supports none of our ciphers",
    "tlsv1 alert unknown ca": "client does not trust this fleet's authority",
    "sslv3 alert bad certificate": "client does not trust the broker's certificate",
}
#: Number of different sentences whose repetitions are counted.
_REMEMBERED = 1000


class RefusalReader:
    """Reads a log line by line.

    Args:
        register: of the fleet whose broker wrote the log.
    """

    def __init__(self, register: Register) -> None:
        self._federation = register.federation
        self._members = {member.login: member for member in all_members(register)}
        self._refuses_subscriptions = bool(register.plugin)
        self._last = ""
        self._subscriber = ""
        self._expects_will = False
        self._times: OrderedDict[str, int] = OrderedDict()

    def read(self, line: str) -> str | None:
        """Returns the refusal that a line reports; None: no refusal, or a repetition.

        Of a repeated sentence the 1st, 2nd, 4th, 8th … are returned.
        """
        sentence = self._sentence(line.rstrip("\n"))
        if sentence is None:
            return None
        times = self._times.pop(sentence, 0) + 1
        self._times[sentence] = times
        if len(self._times) > _REMEMBERED:
            self._times.popitem(last=False)
        if times & (times - 1):
            return None
        return sentence if times == 1 else f"{sentence} ({times} times)"

    def _sentence(self, line: str) -> str | None:
        expects_will, self._expects_will = self._expects_will, False
        if found := _CONNECTED.search(line):
            self._last = found["who"]
            return None
        if _WILL.search(line):
            self._expects_will = True
            return None
        if found := _INDENTED.search(line):
            return self._will(found["topic"]) if expects_will else None
        if found := _DENIED.search(line):
            return (
                f"{self._name(found['who'])} published {found['size']} bytes on {found['topic']}:"
                " refused, no right to write"
            )
        if found := _SUBSCRIBES.search(line):
            self._subscriber = found["who"]
            return None
        if found := _SUBSCRIBED.search(line):
            return self._subscription(self._subscriber, found["filter"])
        if (about := _of_a_client(line)) is not None:
            who, what = about
            return f"{self._name(who)} {what}"
        return _connection(line)

    def _name(self, login: str) -> str:
        """Returns the name in the federation, as everywhere else; of a stranger what it gives."""
        member = self._members.get(login)
        return member.agent_id if member else login

    def _will(self, topic: str) -> str | None:
        member = self._members.get(self._last)
        if member and may_write(self._federation, member, topic):
            return None
        return (
            f"{self._name(self._last)} left a will on {topic}: broker will not publish it, no right"
            " to write"
        )

    def _subscription(self, who: str, topic_filter: str) -> str | None:
        member = self._members.get(who)
        if who == ADMINISTRATOR or (member and may_read(self._federation, member, topic_filter)):
            return None
        name = self._name(who)
        verdict = f"broker delivers only what {name} may read"
        if self._refuses_subscriptions:
            verdict = "refused"
        return f"{name} subscribed to {topic_filter}: {verdict}"


def _of_a_client(line: str) -> tuple[str, str] | None:
    """Returns who was disconnected or connected twice, and the words for it."""
    if found := _TOO_LARGE.search(line):
        return found["who"], "was disconnected: packet larger than max_packet_size"
    if found := _NOT_ALLOWED.search(line):
        return found["who"], "was disconnected: not authorised"
    if found := _TWICE.search(line):
        return found["who"], "connected a second time: is its key on two machines?"
    return None


def _connection(line: str) -> str | None:
    if found := _NO_TLS.search(line):
        reason = _TLS_REASONS.get(found["why"], found["why"])
        return f"a connection from {found['where']} was refused: {reason}"
    if (found := _TLS.search(line)) and found["why"] in _TLS_REASONS:
        return f"a connection was refused: {_TLS_REASONS[found['why']]}"
    if _FULL.search(line):
        return "connections were refused: max_connections reached"
    return None
