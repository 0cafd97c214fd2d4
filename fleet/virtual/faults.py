"""Fault plan of a simulation: a YAML file; everything random is drawn from one seed.

The faults are those that were measured on real brokers and devices: connections break, brokers
drop queued messages although they reported Success to the publisher, and forget sessions,
queues and retained messages when they are killed; devices and the coordinator lose power at any
moment.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
Moment = Annotated[float, Meta(ge=0, le=1e9)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
Names = Annotated[tuple[str, ...], Meta(min_length=1)]

#: The coordinator's name in fault plans; every other name is an agent's id.
COORDINATOR = "coordinator"
_EVERYONE = ("*",)
_AGENTS = ("agent:*",)


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the parts of a fault plan."""


class Delay(_Part, frozen=True, kw_only=True):
    """Delay of a packet from a client to the broker, or back.

    Attributes:
        kind: "constant"; "uniform" over seconds ± spread; "exponential" with mean `seconds`;
            "lognormal" with median `seconds` and `spread` as standard deviation of its logarithm
            (the usual shape of measured round-trip times).
        seconds: see `kind`.
        spread: see `kind`.
    """

    kind: Literal["constant", "uniform", "exponential", "lognormal"] = "constant"
    seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.001
    spread: Annotated[float, Meta(ge=0, le=3600)] = 0.0

    def __post_init__(self) -> None:
        if self.kind == "uniform" and self.spread > self.seconds:
            raise ValueError(f"spread {self.spread:g} is larger than seconds {self.seconds:g}")
        if self.kind == "lognormal" and self.spread > 5:
            raise ValueError(f"spread {self.spread:g} of a logarithm: at most 5")

    def always(self) -> tuple[float] | None:
        """Returns the delay that every packet has; None: it is random."""
        return (self.seconds,) if self.kind == "constant" else None

    def draw(self, rng: Random) -> float:
        """Returns one random delay in seconds."""
        if self.kind == "constant":
            return self.seconds
        match self.kind:
            case "uniform":
                return rng.uniform(self.seconds - self.spread, self.seconds + self.spread)
            case "exponential":
                return rng.expovariate(1 / self.seconds) if self.seconds else 0.0
            case "lognormal":
                return self.seconds * math.exp(rng.gauss(0.0, self.spread))
        raise AssertionError("every kind has its case")


class Partition(_Part, frozen=True, kw_only=True):
    """Network partition: some processes cannot reach the broker for a while.

    Attributes:
        who: names or patterns ("site-*"): agents, "coordinator", "agent:*" for all agents.
        from_s: time at which their connections break.
        to_s: time from which they can connect again.
    """

    who: Names = _EVERYONE
    from_s: Moment
    to_s: Moment

    def __post_init__(self) -> None:
        if self.to_s <= self.from_s:
            raise ValueError(f"to_s {self.to_s:g} is not after from_s {self.from_s:g}")


class SlowLink(_Part, frozen=True, kw_only=True):
    """Limits a link to `bytes_per_s` each way; packets wait for those before them."""

    who: Names = _EVERYONE
    bytes_per_s: Positive


class BrokerRestart(_Part, frozen=True, kw_only=True):
    """The broker is killed.

    Attributes:
        at_s: time of the kill.
        down_s: seconds until the broker accepts connections again.
        lose: state that is lost: "none" (all was on disk), "queued" messages, "retained" messages,
            or "all": sessions too, as with Mosquitto's default persistence.
    """

    at_s: Moment
    down_s: Moment = 1.0
    lose: Literal["none", "queued", "retained", "all"] = "all"


class Crash(_Part, frozen=True, kw_only=True):
    """A process loses power, and starts again.

    Attributes:
        who: see `Partition`.
        at_s: the crash comes at the first event from this time on.
        after_actions: number of the event's actions that are still performed: 0 to 3 cut between
            writing to disk and sending.
        down_s: seconds until the process starts again.
    """

    who: Names
    at_s: Moment
    after_actions: Annotated[int, Meta(ge=0, le=1000)] = 0
    down_s: Moment = 5.0


class RandomCrashes(_Part, frozen=True, kw_only=True):
    """Crashes at random moments, each process on its own.

    Attributes:
        who: see `Partition`.
        mean_s: between two crashes of one process (exponential).
        down_s: mean time until the process starts again (exponential).
    """

    who: Names = _EVERYONE
    mean_s: Positive
    down_s: Moment = 5.0


class ClockSkew(_Part, frozen=True, kw_only=True):
    """Skew of an agent's clock: the clock reads offset_s + rate × time."""

    who: Names = _AGENTS
    offset_s: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    rate: Annotated[float, Meta(ge=0.1, le=10)] = 1.0


class FaultPlan(_Part, frozen=True, kw_only=True):
    """All faults of a simulation.

    Attributes:
        until_s: end of the random faults (except delays), so that a run can show that the
            federation recovers.
        delay: of every packet.
        reorder: share of packets that may overtake those before them.
        duplicate: share of packets that arrive twice.
        cut: share of packets that break their connection instead of arriving.
        drop: share of messages that the broker silently does not queue for a subscriber.
        max_queued_messages: largest queue of the broker for one client; no limit when not given.
        max_payload_bytes: the broker's limit; blobs are split into chunks that fit.
        partitions, slow_links, broker_restarts, crashes, random_crashes, clock_skews: see their
            classes.
    """

    until_s: Positive = 1e9
    delay: Delay = Delay()
    reorder: Share = 0.0
    duplicate: Share = 0.0
    cut: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    drop: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    max_queued_messages: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_payload_bytes: Annotated[int, Meta(ge=2048, le=200_000_000)] = 1 << 20
    partitions: tuple[Partition, ...] = ()
    slow_links: tuple[SlowLink, ...] = ()
    broker_restarts: tuple[BrokerRestart, ...] = ()
    crashes: tuple[Crash, ...] = ()
    random_crashes: tuple[RandomCrashes, ...] = ()
    clock_skews: tuple[ClockSkew, ...] = ()

    @property
    def calm_s(self) -> float:
        """The virtual time at which all faults are over; random ones end at `until_s`."""
        ends = [part.to_s for part in self.partitions]
        ends += [part.at_s + part.down_s for part in self.broker_restarts]
        ends += [part.at_s + part.down_s for part in self.crashes]
        if self.cut or self.drop or self.random_crashes or self.reorder or self.duplicate:
            ends.append(self.until_s)
        return max(ends, default=0.0)


def confined(plan: FaultPlan, names: Sequence[str]) -> FaultPlan:
    """Returns a plan of the faults that concern agents of these names alone, in which only they do.

    Without those of the broker and of the coordinator, and without what befalls any packet.
    """
    kept: dict[str, tuple[Any, ...]] = {}
    for key in _OF_SOMEBODY:
        parts = (
            msgspec.structs.replace(part, who=tuple(n for n in names if concerns(part.who, n)))
            for part in getattr(plan, key)
        )
        kept[key] = tuple(part for part in parts if part.who)
    calm = FaultPlan(
        until_s=plan.until_s, delay=plan.delay, max_payload_bytes=plan.max_payload_bytes
    )
    return msgspec.structs.replace(calm, **kept)


def without_faults(plan: FaultPlan, names: Sequence[str]) -> list[str]:
    """Returns the agents to which nothing happens; nobody when something concerns all of them."""
    nothing = FaultPlan()
    of_all = (
        *("delay", "reorder", "duplicate", "cut", "drop", "max_queued_messages"),
        "broker_restarts",
    )
    parts = [part for key in _OF_SOMEBODY for part in getattr(plan, key)]
    if any(getattr(plan, key) != getattr(nothing, key) for key in of_all) or any(
        concerns(part.who, COORDINATOR) for part in parts
    ):
        return []
    return [name for name in names if not any(concerns(part.who, name) for part in parts)]


_OF_SOMEBODY = ("partitions", "slow_links", "crashes", "random_crashes", "clock_skews")


def unknown_names(plan: FaultPlan, names: Collection[str]) -> list[str]:
    """Returns names of a plan, patterns left out, that are no process's."""
    given = {name for key in _OF_SOMEBODY for part in getattr(plan, key) for name in part.who}
    plain = {name for name in given if not any(sign in name for sign in "*?[")}
    ids = {name.removeprefix("agent:") for name in plain} - {COORDINATOR}
    return sorted(name for name in ids if name not in names)


def concerns(who: Names, name: str) -> bool:
    """Returns whether `who` matches the process of a name."""
    names = (name,) if name == COORDINATOR else (name, f"agent:{name}")
    return any(fnmatchcase(each, pattern) for pattern in who for each in names)
