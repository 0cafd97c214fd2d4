"""Checks of the way to the broker: clock, files, names, TCP, TLS, login, access, limits.

Each check builds on the previous one: after the first failure the rest are skipped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from broker.diagnostics.access_checks import Rights, access_checks
from broker.diagnostics.host_and_files import check_files, clock_check
from broker.diagnostics.network_checks import check_names, check_tcp, check_tls
from broker.diagnostics.probe import Granted, Probe, packet_limit
from broker.link import disconnect_reasons
from broker.link.settings import BrokerSettings
from fedge.check_result import Check, failed, ok, skipped, warning
from fedge.errors import ConfigError, LinkError

_SLOW_S = 0.5
_ROUND_TRIPS = 5
#: With smaller packets a blob has so many chunks that each costs more than its content.
_SMALL_PACKET = 8192


@dataclass(frozen=True)
class ExpectedPeers:
    """Peers that this client expects at the broker.

    Attributes:
        filters: filters of the messages that they leave retained.
        check: judges those messages, by topic.
    """

    filters: tuple[str, ...]
    check: Callable[[Mapping[str, bytes]], Check]


def network_checks(
    settings: BrokerSettings, name: str, client_id: str, rights: Rights, peers: ExpectedPeers
) -> Iterator[Check]:
    """Runs all checks, in the order of a connection's steps.

    Args:
        settings: how to reach the broker, with absolute file paths.
        name: the agent's id, or "coordinator": expected name of our certificate.
        client_id: client id of the probe; different from the service's.
        rights: rights to try.
        peers: peers to look for at the end.
    """
    yield clock_check()
    steps: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("files", lambda: check_files(settings, name)),
        ("names", lambda: check_names(settings)),
        ("tcp", lambda: check_tcp(settings)),
        ("tls", lambda: check_tls(settings)),
    )
    rest = ["files", "names", "tcp", "tls", "login", "access", "packets", "round trip"]
    for step, look in steps:
        rest.remove(step)
        for check in look():
            yield check
            if check.state == "failed":
                yield from (skipped(later, f"{step} failed", "network") for later in rest)
                return
    yield from _at_the_broker(settings, client_id, rights, peers)


def _at_the_broker(
    settings: BrokerSettings, client_id: str, rights: Rights, peers: ExpectedPeers
) -> Iterator[Check]:
    rest = ["login", "access", "packets", "round trip"]
    try:
        with Probe(settings, client_id) as probe:
            granted = probe.connect()
            rest.remove("login")
            yield _login(settings, granted)
            yield _packets(granted)
            rest.remove("packets")
            yield from access_checks(probe, rights)
            rest.remove("access")
            yield _round_trip(probe, rights)
            rest.remove("round trip")
            yield _presence(probe, peers)
    except (LinkError, ConfigError) as error:
        was_in = "login" not in rest
        at = rest.pop(0) if rest else "others"
        if was_in and settings.tls is not None and settings.tls.cert_file:
            # The broker disconnects the older of two clients with the same certificate.
            advice = "the service is running with this certificate: stop it and repeat this check"
            yield warning(at, str(error), advice, "network")
        else:
            yield failed(at, str(error), _login_advice(error), "network")
        yield from (skipped(later, "no connection", "network") for later in rest)


def _login_advice(error: Exception) -> str:
    text = str(error)
    if "revoked" in text:
        return (
            "this certificate was revoked: after a rotation install the new one; enrol a revoked "
            "device under another name (fedge broker enrol)"
        )
    if "not yet valid" in text:
        return (
            "set the broker's clock; if the clock was ahead at the fleet's last change, change "
            "the fleet once more (fedge broker enrol, or rotate): docs/security.md"
        )
    if "certificate" in text:
        return "compare the certificate with `fedge broker list`"
    if "login" in text:
        return "compare the login with the broker's accounts"
    return "read the broker's log"


def _login(settings: BrokerSettings, granted: Granted) -> Check:
    who = "anonymously"
    if settings.username:
        who = f"as {settings.username}"
    elif settings.tls is not None and settings.tls.cert_file:
        who = "with our certificate"
    way = " over WebSockets" if settings.websocket else ""
    proxy = settings.secrets().proxy
    way += f" through the {proxy.words}" if proxy else ""
    found = f"connected {who}{way} after {1000 * granted.seconds:.0f} ms"
    facts: dict[str, Any] = {"seconds": granted.seconds, "mqtt": "5" if granted.mqtt5 else "3.1.1"}
    if not granted.mqtt5:
        return warning(
            "login",
            f"{found}; {disconnect_reasons.MQTT311_LIMITS}",
            "prefer a broker with MQTT 5",
            "network",
            **facts,
        )
    return ok("login", found, "network", **facts)


def _packets(granted: Granted) -> Check:
    limit = packet_limit(granted)
    named = "no limit" if granted.max_packet_bytes is None else f"up to {limit:,} bytes"
    facts: dict[str, Any] = {
        "max_packet_bytes": granted.max_packet_bytes,
        "receive_max": granted.receive_maximum,
    }
    found = f"{named}, {granted.receive_maximum:,} at a time"
    if limit < _SMALL_PACKET:
        advice = f"raise the broker's limit to {_SMALL_PACKET} or more (max_packet_size)"
        return warning("packets", found, advice, "network", **facts)
    return ok("packets", found, "network", **facts)


def _round_trip(probe: Probe, rights: Rights) -> Check:
    topic, payload = rights.publishes[0]
    seconds = []
    for _ in range(_ROUND_TRIPS):
        began_s = time.perf_counter()
        probe.publish(topic, payload)
        seconds.append(time.perf_counter() - began_s)
    median_s = statistics.median(seconds)
    found = f"{1000 * median_s:.1f} ms (median of {_ROUND_TRIPS}, worst {1000 * max(seconds):.1f})"
    facts = {"median_s": median_s, "worst_s": max(seconds)}
    if median_s > _SLOW_S:
        advice = "this is slow: give rounds long deadlines (round.deadline_s, stall_s)"
        return warning("round trip", found, advice, "network", **facts)
    return ok("round trip", found, "network", **facts)


def _presence(probe: Probe, peers: ExpectedPeers) -> Check:
    del probe.heard[:]
    probe.subscribe(peers.filters)
    probe.receive_all()
    if not probe.is_shared:
        probe.unsubscribe(peers.filters)
    return peers.check({t: payload for t, payload, retained in probe.heard if retained and payload})
