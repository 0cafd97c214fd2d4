"""What a client must be able to do at the broker, and what it must not: tried, not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.diagnostics.probe import Probe
from fedge.check_result import Check, failed, ok, warning


@dataclass(frozen=True)
class Rights:
    """What a client must be able to do at the broker, and what it must not.

    What is published is not retained, and empty or without meaning: nobody acts on it.

    Attributes:
        publishes: (topic, payload) that must be allowed.
        subscribes: filters that must be allowed.
        forbidden: (topic, what it would mean) that must not be allowed to be published on.
        echo: (filter, topic, payload): published on the topic, which is allowed, it must not come
            back; what it would mean is `overhears`.
        overhears: see `echo`.
    """

    publishes: tuple[tuple[str, bytes], ...]
    subscribes: tuple[str, ...]
    forbidden: tuple[tuple[str, str], ...]
    echo: tuple[str, str, bytes] | None = None
    overhears: str = ""


def access_checks(probe: Probe, rights: Rights) -> Iterator[Check]:
    """Tries what must be possible, then what must not be."""
    granted = probe.subscribe(rights.subscribes)
    refused = [f"read {n}" for n, c in zip(rights.subscribes, granted, strict=True) if c >= 0x80]
    refused += [
        f"write {t}" for t, payload in rights.publishes if probe.publish(t, payload) >= 0x80
    ]
    count = len(rights.publishes) + len(rights.subscribes)
    if refused:
        yield failed(
            "access",
            f"the broker does not let us {', '.join(refused)}",
            "correct its access rules (docs/security.md); "
            "with fedge's own: is this device enrolled, in this federation?",
            "network",
            refused=refused,
        )
    else:
        unsure = "" if probe.mqtt5 else "; with MQTT 3.1.1 nobody says whether it may publish"
        yield ok("access", f"it may do all {count} things that it must{unsure}", "network")
    tried = [pair for pair in rights.forbidden if probe.mqtt5 or pair[0] in rights.subscribes]
    allowed = [what for topic, what in tried if _goes_through(probe, topic, rights)]
    if rights.echo is not None and _overhears(probe, rights.echo):
        allowed.append(rights.overhears)
    if not probe.is_shared:
        probe.unsubscribe(rights.subscribes)
    if allowed:
        yield warning(
            "access",
            f"this client could also {'; '.join(allowed)}",
            "anybody with this login could: give the broker access rules "
            "(fedge broker init makes a broker with them)",
            "network",
            allowed=allowed,
        )
    else:
        count = len(tried) + (rights.echo is not None)
        yield ok("access", f"it may do none of the {count} things that it must not", "network")


def _goes_through(probe: Probe, topic: str, rights: Rights) -> bool:
    """Whether a message reached others; brokers may say yes and drop it."""
    if probe.publish(topic) >= 0x80:
        return False
    if topic not in rights.subscribes:
        return True  # nobody can tell
    return probe.listen(lambda: (topic, b"", False) in probe.heard, probe.patience_s)


def _overhears(probe: Probe, echo: tuple[str, str, bytes]) -> bool:
    topic_filter, topic, payload = echo
    if probe.subscribe([topic_filter])[0] >= 0x80:
        return False
    probe.publish(topic, payload)
    found = probe.listen(lambda: (topic, payload, False) in probe.heard, probe.patience_s)
    probe.unsubscribe([topic_filter])
    return found
