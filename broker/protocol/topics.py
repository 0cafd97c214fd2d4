"""Every topic of protocol v1, built and parsed by the same class.

    fedge/v1/<federation>/<tail>

A topic is a frozen value; its `tail` is what follows the federation. Ids are checked when a value
is made, so an id like "#" or "a/b" can be neither parsed nor published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Self

import msgspec

from fedge.errors import ConfigError, WireError

PREFIX = "fedge/v1"
#: No tail of ours is longer; an MQTT topic may have 64 KiB.
_LONGEST_TAIL = 200
ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"
_ID = re.compile(ID_PATTERN, re.ASCII)
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_NUMBERS = frozenset(("round_id", "index"))


def check_id(value: str, what: str) -> str:
    """`value`, when it may be part of a topic.

    Raises:
        ConfigError: names `what`, the value and what is allowed.
    """
    if not _ID.fullmatch(value):
        raise ConfigError(
            f"{what} {value[:80]!r} is not allowed: use 1 to 64 letters, digits, '-' or '_'"
        )
    return value


class Topic(msgspec.Struct, frozen=True):
    """Base of the topics: subclasses say their pattern and their tail."""

    pattern: ClassVar[re.Pattern[str]]

    @property
    def tail(self) -> str:
        """The part of the topic after `fedge/v1/<federation>/`."""
        raise TypeError(f"{type(self).__name__} has no tail")

    def __post_init__(self) -> None:
        if not self.pattern.fullmatch(self.tail):
            raise WireError(f"not a topic of this protocol: {self.tail[:80]!r}")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        """The topic a tail matched; numbers become integers."""
        parts = zip(cls.__struct_fields__, match.groups(), strict=True)
        return cls(*[int(text) if name in _NUMBERS else text for name, text in parts])


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(
        text.replace("{agent}", f"(?P<agent_id>{ID_PATTERN})")
        .replace("{round}", f"(?P<round_id>{_NUMBER})")
        .replace("{n}", f"(?P<index>{_NUMBER})")
        .replace("{sha256}", "(?P<sha256>[0-9a-f]{64})"),
        re.ASCII,
    )


class CoordinatorStatusTopic(Topic, frozen=True):
    """Retained: the coordinator's birth, and its will."""

    pattern = _pattern("coordinator/status")

    @property
    def tail(self) -> str:
        """`coordinator/status`."""
        return "coordinator/status"


class CoordinatorProbeTopic(Topic, frozen=True):
    """Topic that the coordinator alone writes and reads: finds the broker's limit of size."""

    pattern = _pattern("coordinator/probe")

    @property
    def tail(self) -> str:
        """`coordinator/probe`."""
        return "coordinator/probe"


class AgentProbeTopic(Topic, frozen=True):
    """Topic that one agent alone writes and reads: finds the broker's limit of size."""

    agent_id: str
    pattern = _pattern("agents/{agent}/probe")

    @property
    def tail(self) -> str:
        """`agents/<id>/probe`."""
        return f"agents/{self.agent_id}/probe"


class ResultsTopic(Topic, frozen=True):
    """Retained: figures of the last round, for people and home automation; no agent reads them."""

    pattern = _pattern("results")

    @property
    def tail(self) -> str:
        """`results`."""
        return "results"


class ProgramTopic(Topic, frozen=True):
    """Retained: the manifest of the model package."""

    pattern = _pattern("program")

    @property
    def tail(self) -> str:
        """`program`."""
        return "program"


class RoundTopic(Topic, frozen=True):
    """Retained: the current plan."""

    pattern = _pattern("round")

    @property
    def tail(self) -> str:
        """`round`."""
        return "round"


class ChunkTopic(Topic, frozen=True):
    """Retained: chunk `index` of the blob named by its SHA-256."""

    sha256: str
    index: int
    pattern = _pattern("blobs/{sha256}/{n}")

    @property
    def tail(self) -> str:
        """`blobs/<sha256>/<n>`."""
        return f"blobs/{self.sha256}/{self.index}"


class AgentStatusTopic(Topic, frozen=True):
    """Retained: an agent's birth, and its will."""

    agent_id: str
    pattern = _pattern("agents/{agent}/status")

    @property
    def tail(self) -> str:
        """`agents/<id>/status`."""
        return f"agents/{self.agent_id}/status"


class UpdateTopic(Topic, frozen=True):
    """Chunk `index` of an agent's update for a round."""

    agent_id: str
    round_id: int
    index: int
    pattern = _pattern("agents/{agent}/updates/{round}/{n}")

    @property
    def tail(self) -> str:
        """`agents/<id>/updates/<round>/<n>`."""
        return f"agents/{self.agent_id}/updates/{self.round_id}/{self.index}"


class ReportTopic(Topic, frozen=True):
    """An agent's answer to a round that is not an update: declined, or an evaluation."""

    agent_id: str
    round_id: int
    pattern = _pattern("agents/{agent}/reports/{round}")

    @property
    def tail(self) -> str:
        """`agents/<id>/reports/<round>`."""
        return f"agents/{self.agent_id}/reports/{self.round_id}"


class InboxTopic(Topic, frozen=True):
    """Topic of the receipts from the coordinator to one agent."""

    agent_id: str
    pattern = _pattern("agents/{agent}/inbox")

    @property
    def tail(self) -> str:
        """`agents/<id>/inbox`."""
        return f"agents/{self.agent_id}/inbox"


_TOPICS: tuple[type[Topic], ...] = (
    UpdateTopic,
    ReportTopic,
    ChunkTopic,
    AgentStatusTopic,
    InboxTopic,
    RoundTopic,
    ProgramTopic,
    CoordinatorStatusTopic,
    ResultsTopic,
    AgentProbeTopic,
    CoordinatorProbeTopic,
)


#: By the number of slashes in their tail.
_KINDS = {
    slashes: tuple(kind for kind in _TOPICS if kind.pattern.pattern.count("/") == slashes)
    for slashes in range(5)
}


def _parse_tail(tail: str) -> Topic | None:
    for kind in _KINDS.get(tail.count("/"), ()):
        if match := kind.pattern.fullmatch(tail):
            return kind.from_match(match)
    return None


#: The same few come again and again; those of agents are too many.
_remembered_tail = lru_cache(maxsize=1024)(_parse_tail)


@dataclass(frozen=True)
class Topics:
    """The topics of one federation.

    Raises:
        ConfigError: the federation's name is not a plain id.
    """

    federation: str

    def __post_init__(self) -> None:
        check_id(self.federation, "federation")

    @cached_property
    def root(self) -> str:
        """`fedge/v1/<federation>/`."""
        return f"{PREFIX}/{self.federation}/"

    def name(self, topic: Topic) -> str:
        """The topic as MQTT knows it."""
        return self.root + topic.tail

    def parse(self, name: str) -> Topic:
        """The topic behind a name.

        Raises:
            WireError: not of this federation, or not of this protocol.
        """
        root = self.root
        if not name.startswith(root):
            raise WireError(f"not a topic of federation {self.federation!r}: {name[:120]!r}")
        tail = name[len(root) :]
        parse = _parse_tail if tail.startswith("agents/") else _remembered_tail
        topic = parse(tail) if len(tail) <= _LONGEST_TAIL else None
        if topic is None:
            raise WireError(f"not a topic of this protocol: {name[:120]!r}")
        return topic

    def chunks_of(self, sha256: str) -> str:
        """Filter for all chunks of one blob."""
        return f"{self.root}blobs/{sha256}/+"

    @property
    def from_agents(self) -> tuple[str, ...]:
        """Filters for all that agents write."""
        return (
            f"{self.root}agents/+/status",
            f"{self.root}agents/+/updates/+/+",
            f"{self.root}agents/+/reports/+",
        )
