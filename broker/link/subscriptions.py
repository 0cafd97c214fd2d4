"""Subscriptions of one session: sent again on every connection, confirmed by SUBACK.

Everything here runs on the network thread.
"""

from __future__ import annotations

from paho.mqtt.reasoncodes import ReasonCode

from broker.link.link import QOS
from broker.link.paho_client import Driver

_FILTERS_PER_PACKET = 50


class Subscriptions:
    """Topic filters that a client wants, and those that the broker has not confirmed.

    Args:
        driver: sends the packets.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._filters: dict[str, None] = {}  # a set that keeps its order
        self._required: set[str] = set()  # added before the first connection
        self._is_first = True
        self._to_unsubscribe: dict[str, None] = {}
        self._unconfirmed: dict[int, list[str]] = {}  # by packet id

    @property
    def are_confirmed(self) -> bool:
        """Whether the broker has answered every SUBSCRIBE of this connection."""
        return not self._unconfirmed

    def add(self, topic_filter: str, *, is_connected: bool) -> None:
        """Adds a filter, now and on every connection."""
        if self._is_first:
            self._required.add(topic_filter)
        self._to_unsubscribe.pop(topic_filter, None)
        self._filters[topic_filter] = None
        if is_connected:
            self._send([topic_filter])

    def remove(self, topic_filter: str, *, is_connected: bool) -> None:
        """Removes a filter; without a connection, from the session when there is one again."""
        self._filters.pop(topic_filter, None)
        if is_connected:
            self._driver.client.unsubscribe(topic_filter)
        else:
            self._to_unsubscribe[topic_filter] = None

    def send_all(self) -> None:
        """Brings the session of a new connection up to date."""
        self._is_first = False
        if self._to_unsubscribe:
            self._driver.client.unsubscribe(list(self._to_unsubscribe))
            self._to_unsubscribe.clear()
        filters = list(self._filters)
        for start in range(0, len(filters), _FILTERS_PER_PACKET):
            self._send(filters[start : start + _FILTERS_PER_PACKET])

    def _send(self, filters: list[str]) -> None:
        _, mid = self._driver.client.subscribe([(name, QOS) for name in filters])
        if mid is not None:
            self._unconfirmed[mid] = filters

    def is_required(self, topic_filter: str) -> bool:
        """Returns whether the client cannot do without a filter: it began with it."""
        return topic_filter in self._required

    def confirmed(self, mid: int, codes: list[ReasonCode]) -> list[tuple[str, int]]:
        """Takes a SUBACK; forgets and returns what the broker refused, with the reason codes.

        Filters that the client cannot do without are asked for again on the next connection.
        """
        refused = [
            (topic_filter, int(code.value))
            for topic_filter, code in zip(self._unconfirmed.pop(mid, []), codes, strict=False)
            if code.is_failure and topic_filter in self._filters
        ]
        for topic_filter, _ in refused:
            if not self.is_required(topic_filter):
                self._filters.pop(topic_filter)
        return refused

    def disconnected(self) -> None:
        """Forgets the packets of the connection that ended."""
        self._unconfirmed.clear()
