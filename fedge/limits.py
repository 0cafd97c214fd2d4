"""Limits of rates, and of the log: what strangers send decides neither.

A line about one sender is logged the 1st, 2nd, 4th, 8th ... time. Whoever invents a new id for each
message meets the second bound: so many lines of a kind (one log call in the code) in a minute.
Whoever invents a new reason for each meets a third: so many of them about one sender.
Nothing is lost but repetition: each line says how many there were, or how many were left out.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

#: Lines of one kind that are logged at once, and then in a minute.
LINES_AT_ONCE = 60
LINES_PER_MINUTE = 12
#: Lines of one kind about one sender, likewise.
SENDER_LINES_AT_ONCE = 20
SENDER_LINES_PER_MINUTE = 1
#: Senders and reasons whose lines are counted; the one silent for longest is forgotten.
_MAX_SENDERS = 2048
#: Characters of a limited line, control characters escaped.
_MAX_CHARACTERS = 1000


def is_power_of_two(count: int) -> bool:
    """Returns whether the `count`-th of many alike is worth a line: the 1st, 2nd, 4th, 8th ..."""
    return count > 0 and count & (count - 1) == 0


class TokenBucket:
    """Token bucket, full at first; the time is an argument.

    Args:
        per_second: tokens gained in a second.
        burst: tokens that it holds at most.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._level, self._at_s = burst, 0.0

    def take(self, now_s: float) -> bool:
        """Returns whether one more is allowed at `now_s`, and counts it."""
        # A clock that was set back gains nothing, and loses nothing but the time until then.
        gained = max(0.0, now_s - self._at_s) * self._per_second
        self._level = min(self._burst, self._level + gained)
        self._at_s = now_s
        if self._level < 1:
            return False
        self._level -= 1
        return True


def printable(text: str, keep: str = "") -> str:
    """Returns foreign text with control characters escaped (`\\x1b`, `\\n`).

    Otherwise such a text could move a terminal's cursor or forge a line of a log.

    Args:
        text: text to show.
        keep: control characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


class RepeatFilter(logging.Filter):
    """Filter of a handler that leaves out repeated lines.

    It looks at warnings and errors, and at every line whose call names the sender of a message:
    `extra={"sender": agent_id, "reason": error.reason}`. Threads that log at once may miscount.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: OrderedDict[tuple[object, ...], int] = OrderedDict()
        self._senders: OrderedDict[tuple[object, ...], TokenBucket] = OrderedDict()
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether to log `record`, whose text then ends with the number left out."""
        sender = getattr(record, "sender", None)
        if (sender is None and record.levelno < logging.WARNING) or record.levelno < logging.INFO:
            return True
        ending = self._ending(record, sender)
        if ending is None:
            return False
        text = printable(record.getMessage())  # one character may become ten
        if len(text) > _MAX_CHARACTERS:
            text = f"{text[:_MAX_CHARACTERS]}... ({len(text)} characters)"
        record.msg, record.args = text + ending, ()
        return True

    def _ending(self, record: logging.LogRecord, sender: object) -> str | None:
        """Returns what to add to a line; None: leave it out."""
        place = (record.pathname, record.lineno)
        count = 1
        if sender is not None:
            count = self._count((*place, sender, getattr(record, "reason", "")))
            if not is_power_of_two(count):
                return None
        kind = self._kinds.setdefault(place, _Kind())
        lines = [kind.lines] if sender is None else [self._lines_of(*place, sender), kind.lines]
        if not all(bucket.take(record.created) for bucket in lines):
            kind.left_out += 1
            return None
        left_out, kind.left_out = kind.left_out, 0
        parts = [f"{count} times so far"] if count > 1 else []
        parts += [f"{left_out} similar lines left out"] if left_out else []
        return f" ({'; '.join(parts)})" if parts else ""

    def _count(self, key: tuple[object, ...]) -> int:
        count = self._counts.pop(key, 0) + 1
        self._counts[key] = count
        if len(self._counts) > _MAX_SENDERS:
            self._counts.popitem(last=False)
        return count

    def _lines_of(self, *key: object) -> TokenBucket:
        bucket = self._senders.pop(key, None)
        if bucket is None:
            bucket = TokenBucket(SENDER_LINES_PER_MINUTE / 60, SENDER_LINES_AT_ONCE)
        self._senders[key] = bucket
        if len(self._senders) > _MAX_SENDERS:
            self._senders.popitem(last=False)
        return bucket


class _Kind:
    """Lines of one log call: a place in the code, so that their number is bounded."""

    def __init__(self) -> None:
        self.lines = TokenBucket(LINES_PER_MINUTE / 60, LINES_AT_ONCE)
        self.left_out = 0
