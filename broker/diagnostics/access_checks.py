"""Checks of a client's rights at the broker: tries what must be allowed and what must not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.diagnostics.probe import Probe
from fedge.check_result import Check, failed, ok, warning


@dataclass(frozen=True)
class Rights:
    """Rights that a client must have at the broker, and rights that it must not have.

    The probe's messages are not retained, and empty or without meaning: no client acts on them.

    Attributes:
        publishes: (topic, payload) that must be allowed.
        subscribes: filters that must be allowed.
        forbidden: (topic, consequence): topics that the client must not write.
        echo: (filter, topic, payload): a message on the topic, which is allowed, must not reach the
            filter.
        overhears: consequence if it does.
        probe: topic that the client may write and read, for test messages.
    """

    publishes: tuple[tuple[str, bytes], ...]
    subscribes: tuple[str, ...]
    forbidden: tuple[tuple[str, str], ...]
    echo: tuple[str, str, bytes] | None = None
    overhears: str = ""
    probe: str = ""


def access_checks(probe: Probe, rights: Rights, *, asked_in_5: bool = False) -> Iterator[Check]:
    """Tries the allowed actions, then the forbidden ones.

    Args:
        probe: connected.
        rights: to be tried.
        asked_in_5: the probe speaks MQTT 5 and the service does not.
    """
    granted = probe.subscribe(rights.subscribes)
    refused = [f"read {n}" for n, c in zip(rights.subscribes, granted, strict=True) if c >= 0x80]
    refused += [
        f"write {t}" for t, payload in rights.publishes if probe.publish(t, payload) >= 0x80
    ]
    count = len(rights.publishes) + len(rights.subscribes)
    if refused:
        yield failed(
            "access",
            f"the broker refuses: {', '.join(refused)}",
            "correct its access rules (docs/security.md); "
            "if fedge wrote them: is this device enrolled, in this federation?",
            "network",
            refused=refused,
        )
    else:
        unsure = "" if probe.mqtt5 else "; MQTT 3.1.1 does not tell whether publishing is allowed"
        unsure = "; asked with MQTT 5, since 3.1.1 does not tell" if asked_in_5 else unsure
        yield ok("access", f"all {count} required rights are granted{unsure}", "network")
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
            "every client with this login could: give the broker access rules "
            "(fedge broker init makes a broker with them)",
            "network",
            allowed=allowed,
        )
    else:
        count = len(tried) + (rights.echo is not None)
        yield ok("access", f"all {count} forbidden actions are refused", "network")


def _goes_through(probe: Probe, topic: str, rights: Rights) -> bool:
    """Returns whether a message reaches other clients; a broker may confirm and drop it."""
    if probe.publish(topic) >= 0x80:
        return False
    if topic not in rights.subscribes:
        return True  # cannot be observed
    return probe.listen(lambda: (topic, b"", False) in probe.heard, probe.patience_s)


def _overhears(probe: Probe, echo: tuple[str, str, bytes]) -> bool:
    topic_filter, topic, payload = echo
    if probe.subscribe([topic_filter])[0] >= 0x80:
        return False
    probe.publish(topic, payload)
    found = probe.listen(lambda: (topic, payload, False) in probe.heard, probe.patience_s)
    probe.unsubscribe([topic_filter])
    return found
