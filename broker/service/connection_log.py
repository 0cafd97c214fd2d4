"""Log lines about a connection: the first of each kind, then fewer and fewer."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from broker.link.link import Refused
from fedge.limits import is_power_of_two

log = logging.getLogger(__name__)

#: A connection that lasted so long ends a series of failures.
_STABLE_S = 60.0
#: Refusals that are told apart.
_MOST_KINDS = 64
#: Levels of a topic that differ from message to message: rounds, chunks, digests.
_VARYING = re.compile(r"/(?:[0-9]{1,9}|[0-9a-f]{64})(?=/|$)")


def topic_class(topic: str) -> str:
    """Returns a filter for all topics of the kind of `topic`."""
    return _VARYING.sub("/+", topic)


class ConnectionLog:
    """Logs how a connection fares.

    Of failures that follow one another, each reason is logged when it is new, and then the 2nd,
    4th, 8th ... failure of them all. Of refusals each kind is logged once.

    Args:
        clock: steady, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._up_since_s: float | None = None
        self._reasons: set[str] = set()
        self._failures = 0
        self._is_awaited = True  # a failure was logged since the last connection that was
        self._refusals: set[tuple[str, str]] = set()

    def up(self, notice: str, *, session_present: bool) -> None:
        """Logs a connection, or the limit that was found on it."""
        self._up_since_s = self._clock()
        if notice:
            log.warning("%s", notice, extra={"event": "size_limit"})
            return
        level = logging.INFO if self._is_awaited else logging.DEBUG
        self._is_awaited = False
        log.log(level, "connected%s", " again to our session" if session_present else "")

    def down(self, reason: str) -> None:
        """Logs a lost or failed connection."""
        since_s, self._up_since_s = self._up_since_s, None
        if since_s is not None and self._clock() - since_s >= _STABLE_S:
            self._reasons.clear()
            self._failures = 0
        self._failures += 1
        kind = re.sub("[0-9]+", "#", reason)
        is_new = kind not in self._reasons and len(self._reasons) < _MOST_KINDS
        if is_new:
            self._reasons.add(kind)
        count = f" ({self._failures} failures)" if self._failures > 1 else ""
        is_told = is_new or is_power_of_two(self._failures)
        self._is_awaited |= is_told
        level = logging.WARNING if is_told else logging.DEBUG
        log.log(level, "%s%s; trying again", reason, count, extra={"event": "link_down"})

    def refused(self, refused: Refused) -> None:
        """Logs a negative acknowledgement, the first of its kind."""
        kind = (topic_class(refused.topic), refused.reason)
        is_new = kind not in self._refusals and len(self._refusals) < _MOST_KINDS
        if is_new:
            self._refusals.add(kind)
        log.log(
            logging.ERROR if is_new else logging.DEBUG,
            "broker refuses %s %s (%s): %s",
            "to deliver" if refused.is_subscription else "messages on",
            kind[0],
            refused.reason,
            refused.next_step,
            extra={"event": "refused", "topic": refused.topic},
        )
