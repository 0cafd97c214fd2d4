"""Entries of a simulation's event trace, for the trace file and for the invariants."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO
from zlib import crc32

from broker.protocol.topics import PREFIX
from broker.service.events import Connected, MessageArrived, Publish, Subscribe, Unsubscribe
from coordinator.machine.events import Commit, SaveOpenRound, SaveRound, StoreUpdate
from edge_agent.machine.events import BlobRecalled, LoadPackage, PackageLoaded, StartJob
from learning.vector.parameters import F32

#: Before the number of a process that is a whole cohort; no agent's id has a colon.
COHORT = "cohort:"


@dataclass(frozen=True)
class Handled:
    """A machine handled an event; its shell performs these actions next.

    Attributes:
        time_s: virtual time.
        node: name of the process.
        event: that the machine handled.
        actions: that the shell performs: all, or fewer when a crash cuts them short.
    """

    time_s: float
    node: str
    event: Any
    actions: tuple[Any, ...]


@dataclass(frozen=True)
class Sent:
    """A shell passed a message to its link."""

    time_s: float
    node: str
    topic: str
    payload: bytes


@dataclass(frozen=True)
class Flushed:
    """The coordinator flushed its store: all that it stored so far is on disk."""

    time_s: float
    node: str


@dataclass(frozen=True, eq=False)
class Began:
    """A process started, for the first time or again.

    Attributes:
        instance: number of the start, from 1.
        version, theta: loaded by the coordinator from its store; 0 and None for agents.
    """

    time_s: float
    node: str
    instance: int
    version: int = 0
    theta: F32 | None = None


@dataclass(frozen=True)
class Ended:
    """A process ended: "crash", "stopped" (in good order) or "finished"."""

    time_s: float
    node: str
    how: str


@dataclass(frozen=True)
class BrokerKilled:
    """The broker lost its connections and some of its state."""

    time_s: float
    lose: str


Entry = Handled | Sent | Flushed | Began | Ended | BrokerKilled
Observer = Callable[[Entry], None]


def trace_line(entry: Entry) -> str:
    """Returns the entry as one line of JSON; two runs of one seed give the same lines."""
    return json.dumps(describe(entry), separators=(",", ":"))


def describe(entry: Entry) -> dict[str, Any]:
    """Returns the entry as names and small values."""
    line: dict[str, Any] = {"t": round(entry.time_s, 6)}
    if not isinstance(entry, BrokerKilled):
        line["node"] = entry.node
    match entry:
        case Handled(_, _, event, actions):
            line["event"] = _brief(event)
            line["actions"] = [_brief(action) for action in actions]
        case Sent(_, _, topic, payload):
            line["sent"] = f"{_short(topic)} {_mark(payload)}"
        case Flushed():
            line["flushed"] = True
        case Began(instance=instance, version=version):
            line |= {"began": instance, "version": version}
        case Ended(how=how):
            line["ended"] = how
        case BrokerKilled(lose=lose):
            line["broker"] = f"killed, lost {lose}"
    return line


class TraceFile:
    """Writes every entry except `Sent`, which the actions show already."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, entry: Entry) -> None:
        """Writes the next entry."""
        if not isinstance(entry, Sent):
            self._file.write(trace_line(entry) + "\n")


def _short(topic: str) -> str:
    """Returns the topic without prefix and federation; digests are cut."""
    tail = topic[len(PREFIX) + 1 :].partition("/")[2] if topic.startswith(PREFIX) else topic
    return "/".join(level[:12] if len(level) == 64 else level for level in tail.split("/"))


def _mark(payload: bytes) -> str:
    return f"{len(payload)} B {crc32(payload):08x}"


def _brief(thing: Any) -> str:
    name = type(thing).__name__
    match thing:
        case MessageArrived(topic, payload):
            return f"{name} {_short(topic)} {_mark(payload)}"
        case Publish(topic, payload, retain):
            return f"{name} {_short(topic)} {_mark(payload)}{' retained' if retain else ''}"
        case Subscribe(topic) | Unsubscribe(topic):
            return f"{name} {_short(topic)}"
        case Connected(_, present):
            return f"{name}{' to its session' if present else ''}"
        case StoreUpdate(round_id, agent_id, version, frame):
            return f"{name} {round_id} {agent_id} {version} {_mark(frame)}"
        case Commit(version, theta):
            return f"{name} {version} {_mark(theta.tobytes())}"
        case SaveOpenRound(plan) | StartJob(plan):
            return f"{name} {plan.round_id} {plan.phase_name}"
        case SaveRound(record):
            return f"{name} {record.round_id} {record.status}"
        case LoadPackage(package) | PackageLoaded(package) | BlobRecalled(package):
            return f"{name} {package[:12]}"
    of = getattr(thing, "plan", None)
    return name if of is None else f"{name} {of.round_id} {of.phase_name}"
