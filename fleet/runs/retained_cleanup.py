"""Removes the retained messages of a run from an external broker."""

from __future__ import annotations

import time

from broker.link.link import LinkDown, Received
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings
from broker.protocol.topics import Topics
from fedge.errors import LinkError

#: Retained messages arrive at once after subscribing; a longer silence means the end.
_SILENCE_S = 1.0
_LONGEST_S = 20.0


def clear_retained(settings: BrokerSettings, federation: str) -> int:
    """Removes all retained messages of a federation; returns how many.

    Raises:
        LinkError: the broker cannot be reached.
    """
    link = MqttLink(settings, client_id=f"fedge-{federation}-cleanup", session_expiry_s=0)
    cleared = 0
    try:
        link.subscribe(Topics(federation).root + "#")
        link.open()
        ends = time.monotonic() + _LONGEST_S
        while time.monotonic() < ends:
            event = link.poll(_SILENCE_S)
            if event is None:
                break
            if isinstance(event, LinkDown):
                raise LinkError(event.reason)
            if isinstance(event, Received) and event.retain and event.payload:
                link.publish(event.topic, b"", retain=True)
                cleared += 1
        return cleared
    finally:
        link.close()
