"""Check of how large a message the broker takes: sends some to a topic that only this client reads.

The search is that of the link (`broker.link.size_probe`).
"""

from __future__ import annotations

from broker.diagnostics.probe import Granted, Probe, packet_limit
from broker.link import disconnect_reasons
from broker.link.link import publish_packet_bytes
from broker.link.size_probe import (
    LEAST_PAYLOAD,
    MARGIN,
    MARKER_BYTES,
    SizeSearch,
    probe_message,
    size_for,
)
from broker.protocol import blobs
from fedge.check_result import Check, failed, ok, warning
from fedge.errors import LinkError

_LARGEST_CHUNK = blobs.HEADER_BYTES + blobs.CHUNK_BYTES
#: With smaller chunks a blob has so many that each costs more than its content.
_SMALL = 8192
#: Time limit of a message there and back on a slow network.
_TRIP_S = 60.0
_DROPPED = "dropped"
_ABOUT_SIZE = ("", _DROPPED, disconnect_reasons.negative(disconnect_reasons.PACKET_TOO_LARGE))
_RAISE = (
    "raise the broker's limit to 131072 bytes (Mosquitto: message_size_limit, max_packet_size): "
    "smaller chunks are more messages"
)


class SizeCheck:
    """Finds the largest message that comes back.

    Args:
        probe: connected; it is connected again when the broker ends the connection.
        granted: limits that the broker announced.
        topic: that this client may write and read.
        max_payload_bytes: limit of the client's configuration.
    """

    def __init__(self, probe: Probe, granted: Granted, topic: str, max_payload_bytes: int) -> None:
        self._probe = probe
        self._granted = granted
        self._topic = topic
        # The test message and its packet may be as large as the configuration and broker allow.
        header = publish_packet_bytes(topic, 0, mqtt5=granted.mqtt5) + MARGIN
        room = min(max_payload_bytes, packet_limit(granted) - header)
        self._search = SizeSearch(max(LEAST_PAYLOAD, min(size_for(_LARGEST_CHUNK), room)))
        self._number = 0
        self._refusal = ""

    def check(self) -> Check:
        """Searches.

        Raises:
            LinkError: the connection ended for another reason.
        """
        if self._granted.mqtt5:
            return self._run(may_read=self._may_read())
        if not self._may_read():
            return self._cannot_tell()
        return self._run(may_read=True)

    def _may_read(self) -> bool:
        """Returns whether a small message comes back."""
        return self._refusal_of(MARKER_BYTES, may_read=True) == ""

    def _run(self, *, may_read: bool) -> Check:
        while size := self._search.size:
            try:
                refusal = self._refusal_of(size + MARGIN, may_read=may_read)
            except LinkError as error:
                if self._granted.mqtt5:  # which says so when a packet is too large
                    raise
                self._refusal = str(error)
                self._probe.connect()
                self._search.interrupted()
                continue
            if refusal not in _ABOUT_SIZE:
                return self._cannot_tell()
            self._refusal = refusal or self._refusal
            self._search.note(passes=not refusal)
        return self._result()

    def _refusal_of(self, payload_bytes: int, *, may_read: bool) -> str:
        """Sends a message; returns why it does not pass, empty if it does."""
        probe, payload = self._probe, self._message(payload_bytes)
        del probe.heard[:]
        if may_read and probe.subscribe([self._topic])[0] >= 0x80:
            return disconnect_reasons.negative(disconnect_reasons.NOT_AUTHORISED)
        try:
            code = probe.publish(self._topic, payload, timeout_s=_TRIP_S)
            if code >= 0x80:
                return disconnect_reasons.negative(code)
            if not may_read:
                return ""
            return "" if self._comes_back(payload) else _DROPPED
        finally:
            if may_read:
                probe.unsubscribe([self._topic])

    def _comes_back(self, payload: bytes) -> bool:
        """Returns whether a message comes back before a small one that is sent after it."""
        probe, marker = self._probe, self._message(MARKER_BYTES)
        wanted = {(self._topic, payload), (self._topic, marker)}

        def heard() -> set[tuple[str, bytes]]:
            return wanted & {(topic, data) for topic, data, _ in probe.heard}

        is_small = len(payload) == len(marker)
        probe.publish(self._topic, marker, timeout_s=_TRIP_S)
        timeout_s = probe.patience_s if is_small else _TRIP_S
        probe.listen(lambda: (self._topic, marker) in heard(), timeout_s)
        return (self._topic, payload) in heard()

    def _message(self, payload_bytes: int) -> bytes:
        self._number += 1
        return probe_message(self._number, payload_bytes)

    # --- words -----------------------------------------------------------------------------------

    @property
    def _announced(self) -> str:
        granted = self._granted
        if granted.max_packet_bytes is None:
            return f"no limit announced, {granted.receive_maximum:,} at a time"
        limit = f"packets up to {granted.max_packet_bytes:,} bytes"
        return f"{limit}, {granted.receive_maximum:,} at a time"

    def _facts(self, passes: int | None) -> dict[str, int | None]:
        granted = self._granted
        return {
            "max_packet_bytes": granted.max_packet_bytes,
            "receive_max": granted.receive_maximum,
            "payload_bytes": passes,
        }

    def _cannot_tell(self) -> Check:
        """Returns the result where messages on the topic do not pass whatever their size."""
        found = f"{self._announced}; this client may not write and read {self._topic}"
        facts = self._facts(None)
        if packet_limit(self._granted) < _SMALL:
            return warning("packets", found, _RAISE, "network", **facts)
        if self._granted.mqtt5:
            return ok("packets", found, "network", **facts)
        advice = (
            "give it the right (docs/security.md): a broker that drops large messages would go "
            "unnoticed with MQTT 3.1.1"
        )
        return warning("packets", found, advice, "network", **facts)

    def _result(self) -> Check:
        passes = self._search.passes
        facts = self._facts(passes)
        if not passes:
            found = f"{self._announced}; a message of {LEAST_PAYLOAD + MARGIN:,} bytes is"
            return failed("packets", f"{found} {self._why}", _RAISE, "network", **facts)
        found = f"{self._announced}; {passes:,} bytes pass"
        if self._search.fails:
            found += f", {self._search.fails + MARGIN:,} are {self._why}"
        if passes < _SMALL:
            return warning("packets", found, _RAISE, "network", **facts)
        return ok("packets", found, "network", **facts)

    @property
    def _why(self) -> str:
        if self._refusal == _DROPPED:
            return "acknowledged and dropped"
        return f"refused ({self._refusal})"
