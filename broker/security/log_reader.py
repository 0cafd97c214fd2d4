"""Reader of Mosquitto's log: reports refused connections, publications, wills and subscriptions.

Mosquitto logs a refused publication only as a debug message, and grants every SUBSCRIBE: wills and
subscriptions are compared with the fleet's access rules.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from broker.security.access_control import may_read, may_write

_DENIED = re.compile(
    r"Denied PUBLISH from (?P<who>\S+) \(.*?'(?P<topic>.*)', \.\.\. \((?P<size>\d+)"
)
_CONNECTED = re.compile(r"New client connected from (?P<where>\S+) as (?P<who>\S+) \(")
_WILL = re.compile(r"Will message specified \(")
_INDENTED = re.compile(r"\t(?P<topic>\S+)$")
_SUBSCRIBED = re.compile(r"(?:^|: )(?P<who>\S+) [012] (?P<filter>\S+)$")
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
        federation: federation of the broker that wrote the log.
    """

    def __init__(self, federation: str) -> None:
        self._federation = federation
        self._last = ""
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
                f"{found['who']} published {found['size']} bytes on {found['topic']}: refused,"
                " no right to write"
            )
        if found := _SUBSCRIBED.search(line):
            return self._subscription(found["who"], found["filter"])
        return _connection(line)

    def _will(self, topic: str) -> str | None:
        if may_write(self._federation, self._last, topic):
            return None
        return f"{self._last} left a will on {topic}: broker will not publish it, no right to write"

    def _subscription(self, who: str, topic_filter: str) -> str | None:
        if may_read(self._federation, who, topic_filter):
            return None
        return f"{who} subscribed to {topic_filter}: broker delivers only what {who} may read"


def _connection(line: str) -> str | None:
    if found := _NO_TLS.search(line):
        reason = _TLS_REASONS.get(found["why"], found["why"])
        return f"a connection from {found['where']} was refused: {reason}"
    if (found := _TLS.search(line)) and found["why"] in _TLS_REASONS:
        return f"a connection was refused: {_TLS_REASONS[found['why']]}"
    if found := _TOO_LARGE.search(line):
        return f"{found['who']} was disconnected: packet larger than max_packet_size"
    if found := _NOT_ALLOWED.search(line):
        return f"{found['who']} was disconnected: not authorised"
    if found := _TWICE.search(line):
        return f"{found['who']} connected a second time: is its key on two machines?"
    if _FULL.search(line):
        return "connections were refused: max_connections reached"
    return None
