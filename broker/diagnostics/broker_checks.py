"""Checks of the way to the broker: clock, files, names, TCP, TLS, login, access, limits.

Each check builds on the previous one: after the first failure the rest are skipped.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from broker.diagnostics.access_checks import Rights, access_checks
from broker.diagnostics.host_and_files import check_files, clock_check
from broker.diagnostics.network_checks import check_names, check_tcp, check_tls
from broker.diagnostics.probe import Granted, Probe
from broker.diagnostics.size_check import SizeCheck
from broker.link import disconnect_reasons
from broker.link.settings import BrokerSettings
from fedge.check_result import Check, failed, ok, skipped, warning
from fedge.errors import ConfigError, LinkError

_SLOW_S = 0.5
_ROUND_TRIPS = 5


@dataclass(frozen=True)
class ExpectedPeers:
    """Peers that this client expects at the broker.

    Attributes:
        filters: filters of the messages that they leave retained.
        check: judges those messages, by topic.
        elsewhere: filter that is tried when there are none: of peers in other federations; empty:
            none.
    """

    filters: tuple[str, ...]
    check: Callable[[Mapping[str, bytes]], Check]
    elsewhere: str = ""


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
        with Probe(settings, client_id, rights.probe) as probe:
            granted = probe.connect()
            rest.remove("login")
            yield _login(settings, granted)
            yield SizeCheck(probe, granted, rights.probe, settings.max_payload_bytes).check()
            rest.remove("packets")
            if granted.mqtt5:
                yield from access_checks(probe, rights)
                rest.remove("access")
            yield _round_trip(probe, rights)
            rest.remove("round trip")
            yield _presence(probe, peers)
        if not granted.mqtt5:
            yield from _access_in_3(settings, client_id, rights)
            rest.remove("access")
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


def _access_in_3(settings: BrokerSettings, client_id: str, rights: Rights) -> Iterator[Check]:
    """Yields the access checks of a client on MQTT 3.1.1, asked with MQTT 5 where that is known."""
    in_5 = msgspec.structs.replace(settings, protocol="5")
    with Probe(in_5, client_id, rights.probe) as probe:
        try:
            probe.connect()
        except LinkError:
            pass
        else:
            yield from access_checks(probe, rights, asked_in_5=True)
            return
    with Probe(settings, client_id, rights.probe) as probe:
        probe.connect()
        yield from access_checks(probe, rights)


def _login_advice(error: Exception) -> str:
    text = str(error)
    if "revoked" in text:
        return (
            "this certificate was revoked: after a rotation install the new one; a revoked device "
            "is enrolled again (fedge broker enrol)"
        )
    if "not yet valid" in text:
        return (
            "set the broker's clock; if the clock was ahead at the fleet's last change, change "
            "the fleet once more (fedge broker enrol, or rotate): docs/security.md"
        )
    if "set broker.tls" in text:
        return (
            "a port for TLS needs broker.tls with the fleet's ca_file, as in the agent.yaml that "
            "`fedge agent enrol` writes; a port without TLS: is it a broker that listens there?"
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
    kept = _retained(probe, peers.filters)
    if not probe.is_shared:
        probe.unsubscribe(peers.filters)
    if not kept and peers.elsewhere:
        kept = _retained(probe, [peers.elsewhere])
        probe.unsubscribe([peers.elsewhere])
    return peers.check(kept)


def _retained(probe: Probe, filters: Sequence[str]) -> dict[str, bytes]:
    del probe.heard[:]
    probe.subscribe(filters)
    probe.receive_all()
    return {topic: data for topic, data, retained in probe.heard if retained and data}
