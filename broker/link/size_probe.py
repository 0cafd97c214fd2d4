"""Largest message that a broker passes on, where it does not announce a limit.

Mosquitto's `message_size_limit` refuses with PUBACK 0x95 in MQTT 5. In MQTT 3.1.1 it acknowledges
the message and drops it; other brokers end the connection. So test messages on a topic that only
this client writes and reads are tried by bisection: in MQTT 5 once a message was refused, in 3.1.1
before the first message that is larger than all before it.

All of `SizeProbe` runs on the network thread.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable

from broker.link.disconnect_reasons import PACKET_TOO_LARGE
from broker.link.link import QOS, publish_packet_bytes
from broker.link.network_loop import NetworkLoop, Timer
from broker.link.paho_client import Driver

log = logging.getLogger(__name__)

NO_LIMIT = 268_435_455
#: A chunk of 1 KiB with its header; nothing of this project fits into less.
LEAST_PAYLOAD = 1088
#: Test messages are larger than the size they stand for: a topic may be longer than theirs.
MARGIN = 192
#: Payload of the message behind a test message, which passes everywhere.
MARKER_BYTES = 64
#: A test message that comes back, once the broker has it: so long is waited for the first (may it
#: be read at all?), and for a large one on a slow network.
_READABLE_S = 5.0
_ECHO_S = 120.0
_PUBACK_S = 30.0


def _sizes() -> tuple[int, ...]:
    sizes, size = [], 1 << 20
    while size > LEAST_PAYLOAD:
        sizes.append(size)
        size = size * 7 // 8
    return (LEAST_PAYLOAD, *reversed(sizes))


#: Payload sizes that are tried: 1 MiB, then seven eighths of the one before. All clients try the
#: same, so that coordinator and agents find the same limit.
SIZES = _sizes()


def size_for(payload_bytes: int) -> int:
    """Returns the smallest size to try that proves that a payload passes."""
    index = bisect.bisect_left(SIZES, payload_bytes)
    return SIZES[index] if index < len(SIZES) else payload_bytes


def probe_message(number: int, payload_bytes: int) -> bytes:
    """Returns a payload of so many bytes that no client takes for anything."""
    return (b"fedge size probe %d\n" % number).ljust(payload_bytes, b".")


class SizeSearch:
    """Bisection for the largest payload that passes; at most eight steps.

    Args:
        wanted: tried first; may be 0 with `fails`.
        fails: a payload that did not pass.

    Attributes:
        size: to be tried next; 0: the search is over.
        passes: largest that passed; 0: none.
        fails: smallest that did not pass; 0: all did.
    """

    def __init__(self, wanted: int, fails: int = 0) -> None:
        below = [size for size in SIZES if size < (fails or wanted)]
        self._sizes = below if fails else [*below, wanted]
        self._low, self._high = 0, len(self._sizes)
        self._interrupted = 0
        self.passes, self.fails = 0, fails
        self.size = 0 if fails else wanted
        if fails:
            self._choose()

    def note(self, *, passes: bool) -> None:
        """Takes the result of the size that was tried."""
        index = self._sizes.index(self.size)
        if passes:
            self.passes, self._low = self.size, index + 1
        else:
            self.fails, self._high = self.size, index
        self._choose()

    def interrupted(self) -> None:
        """Takes the end of the connection while a size was tried: the second in a row counts."""
        self._interrupted += 1
        if self._interrupted > 1:
            self.note(passes=False)

    def _choose(self) -> None:
        self.size = self._sizes[(self._low + self._high) // 2] if self._low < self._high else 0


class SizeProbe:
    """Finds the largest payload of one link; keeps it while the broker keeps the session.

    Args:
        driver: sends the packets.
        network: for timers.
        topic: that this client may write and read; empty: there is none.
        ended: called with whether the limit is smaller than before.
        count: called with the bytes of each test message that is sent.

    Attributes:
        limit: largest payload that the broker takes, as far as known.
        refused: smallest payload that is known not to pass; 0: none.
    """

    def __init__(
        self,
        driver: Driver,
        network: NetworkLoop,
        topic: str,
        ended: Callable[[bool], None],
        count: Callable[[int], None],
    ) -> None:
        self.limit = NO_LIMIT
        self.refused = 0
        self.topic = topic
        self._driver = driver
        self._network = network
        self._ended = ended
        self._count = count
        self._proven = LEAST_PAYLOAD + MARGIN
        self._is_readable: bool | None = None
        self._search: SizeSearch | None = None
        self._is_sent = False
        self._mid: int | None = None  # of the test message, in MQTT 5
        self._number = 0
        self._awaited = b""  # the marker behind the test message, in 3.1.1
        self._came_back = False
        self._timer: Timer | None = None

    @property
    def is_running(self) -> bool:
        """Whether messages must wait."""
        return self._search is not None

    @property
    def is_sent(self) -> bool:
        """Whether a test message is under way."""
        return self._is_sent

    @property
    def size(self) -> int:
        """Payload that is tried now; 0: none."""
        return self._search.size if self._search else 0

    @property
    def proven_bytes(self) -> int:
        """Largest payload that may be sent without a test."""
        must_ask = self.topic and not self._driver.mqtt5 and self._is_readable is not False
        return min(self._proven, self.limit) if must_ask else self.limit

    def prove(self, payload_bytes: int, most: int) -> None:
        """Tests whether a payload passes, and searches for the largest if not.

        Args:
            payload_bytes: to be sent.
            most: largest payload of this client.
        """
        wanted = max(payload_bytes, min(size_for(payload_bytes), most))
        self._begin(SizeSearch(wanted))

    def was_refused(self, payload_bytes: int) -> None:
        """Searches for the largest payload: the broker refused this one as too large."""
        self.refused = payload_bytes
        if self._search is None and LEAST_PAYLOAD < payload_bytes <= self.limit:
            self._begin(SizeSearch(0, payload_bytes))

    def _begin(self, search: SizeSearch) -> None:
        self._search = search
        self._step()

    # --- the connection --------------------------------------------------------------------------

    def connected(self, *, session_present: bool) -> None:
        """Forgets what was found when the broker has forgotten us: it may have been restarted."""
        if not session_present and self._search is None:
            self.limit, self._proven = NO_LIMIT, LEAST_PAYLOAD + MARGIN
            self._is_readable = None

    def link_up(self) -> None:
        """Goes on with a search that a lost connection interrupted."""
        if self._search is not None:
            self._step()

    def disconnected(self, *, too_large: bool = False) -> None:
        """Takes the end of a connection, perhaps because of the test message."""
        was_sent, self._is_sent = self._is_sent, False
        self._stop_timer()
        self._mid, self._awaited = None, b""
        if self._search is None or not was_sent:
            return
        if too_large:
            self._search.note(passes=False)
        else:
            self._search.interrupted()

    # --- one step --------------------------------------------------------------------------------

    def _step(self) -> None:
        search = self._search
        if search is None or not self._driver.client.is_connected():
            return
        if search.size == 0:
            self._end(search.passes)
        elif self._driver.mqtt5:
            self._send_alone(search.size)
        else:
            self._send_and_listen(search.size)

    def _send_alone(self, size: int) -> None:
        """MQTT 5: the acknowledgement tells."""
        if not self.topic:
            self._halve()
            return
        self._is_sent = True
        self._mid = self._publish(size + MARGIN)
        self._start_timer(_PUBACK_S, self._halve)

    def _send_and_listen(self, size: int) -> None:
        """MQTT 3.1.1: a marker behind the test message comes back after it, or without it."""
        self._driver.client.subscribe(self.topic, QOS)
        self._came_back = False
        if self._is_readable:
            self._is_sent = True
            self._publish(size + MARGIN)
            self._start_timer(_ECHO_S, self._cannot_tell)
        else:
            self._start_timer(_READABLE_S, self._cannot_tell)
        self._publish(MARKER_BYTES)
        self._awaited = probe_message(self._number, MARKER_BYTES)

    def _publish(self, payload_bytes: int) -> int:
        self._number += 1
        payload = probe_message(self._number, payload_bytes)
        self._count(publish_packet_bytes(self.topic, payload_bytes, mqtt5=self._driver.mqtt5))
        return self._driver.client.publish(self.topic, payload, QOS).mid

    def acknowledged(self, mid: int, code: int) -> bool:
        """Takes a PUBACK; returns whether it was a test message's."""
        if mid != self._mid or self._search is None:
            return False
        self._mid, self._is_sent = None, False
        self._stop_timer()
        if code >= 0x80 and code != PACKET_TOO_LARGE:
            self._halve()  # this client may not write the topic
        else:
            self._search.note(passes=code < 0x80)
            self._network.soon(self._step)  # paho removes the message after this callback
        return True

    def came_back(self, payload: bytes) -> None:
        """Takes a message on the topic."""
        if self._search is None or not self._awaited:
            return
        if payload != self._awaited:
            is_ours = payload == probe_message(self._number - 1, len(payload))
            self._came_back = self._came_back or is_ours
            return
        self._awaited = b""
        self._stop_timer()
        if self._is_readable:
            self._is_sent = False
            self._search.note(passes=self._came_back)
        self._is_readable = True
        self._network.soon(self._step)

    def _cannot_tell(self) -> None:
        self._is_readable = False
        self._stop_search()
        self._ended(False)

    @property
    def cannot_tell(self) -> bool:
        """Whether the topic cannot be read, so that dropped messages go unnoticed."""
        return self._is_readable is False

    def _halve(self) -> None:
        """Takes half of what was refused, untested."""
        half = self._search.fails // 2 if self._search else NO_LIMIT
        self._end(max((size for size in SIZES if size <= half), default=LEAST_PAYLOAD))

    def _end(self, passes: int) -> None:
        search, before = self._search, self.limit
        self._stop_search()
        if search is not None and search.fails:
            was_tested = search.fails in SIZES
            self.refused = search.fails + (MARGIN if was_tested else 0)
            self.limit = passes or LEAST_PAYLOAD
        self._proven = max(passes, LEAST_PAYLOAD)
        self._ended(self.limit < before)

    def _stop_search(self) -> None:
        self._stop_timer()
        self._search, self._mid, self._is_sent, self._awaited = None, None, False, b""
        if not self._driver.mqtt5 and self._driver.client.is_connected():
            self._driver.client.unsubscribe(self.topic)

    def _start_timer(self, delay_s: float, function: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._network.later(delay_s, function)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
