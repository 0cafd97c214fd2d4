"""Messages that a cohort exchanges beside its updates: births, plans, weights; their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.link.link import publish_packet_bytes
from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic, ChunkTopic, RoundTopic, Topics
from broker.service.events import Publish
from edge_agent.data.targets import target_findings
from edge_agent.machine.events import PackageLoaded
from edge_agent.machine.status import AgentFacts, agent_status
from edge_agent.training.package_loaded import package_loaded
from fleet.batched.cohort.intake import INSTANCE
from fleet.batched.cohort.task import Columns
from fleet.batched.fleet_setup import FleetSetup

#: Births that are written whole where sizes stand for bytes.
_SAMPLE = 64
_HEARTBEAT_S = 60.0


@dataclass(frozen=True, eq=False)
class Births:
    """What the agents say of themselves when they start.

    Attributes:
        bytes_up: of all statuses.
        statuses: the last of each agent that was looked at, by id.
    """

    bytes_up: int
    statuses: dict[str, AgentStatus]


def births(
    setup: FleetSetup,
    federation: str,
    phases: Callable[[str], tuple[str, ...]],
    memory_bytes: NDArray[np.int64],
    seen_bytes: int,
) -> Births:
    """Returns the births of a fleet: connected, coordinator seen, model loaded.

    Args:
        setup: of the fleet.
        federation: its name.
        phases: that an agent takes part in.
        memory_bytes: of each device, shape (n,).
        seen_bytes: that an agent has received when it sees the coordinator.
    """
    names, data = setup.names, setup.data
    assert data is not None, "before the rows are given away"
    chosen: Iterable[int] = range(len(names))
    if setup.mode == "arrays" and len(names) > _SAMPLE:
        chosen = np.linspace(0, len(names) - 1, _SAMPLE).astype(int).tolist()
    topics = Topics(federation)
    total, statuses = 0, {}
    for number in chosen:
        dataset, program = data.dataset(number), setup.model.program
        odd = target_findings(dataset.arrays, program.spec, dataset.num_train, dataset.split)
        loaded = package_loaded(setup.package.digest, program, dataset, [*odd])
        facts = AgentFacts(
            agent_id=names[number],
            federation=federation,
            agent_instance=INSTANCE,
            phases=phases(names[number]),
            memory_bytes=int(memory_bytes[number]),
            software="simulated",
            heartbeat_s=_HEARTBEAT_S,
        )
        said = [
            _status(facts, None, "", 0),
            _status(facts, None, INSTANCE, seen_bytes),
            _status(facts, loaded, INSTANCE, seen_bytes),
        ]
        topic = topics.name(AgentStatusTopic(names[number]))
        total += sum(publish_packet_bytes(topic, len(messages.encode(each))) for each in said)
        statuses[names[number]] = said[-1]
    return Births(round(total * len(names) / len(statuses)), statuses)


def _status(
    facts: AgentFacts, loaded: PackageLoaded | None, coordinator: str, received: int
) -> AgentStatus:
    return agent_status(facts, loaded, None, None, "", (), 0, coordinator, received, online=True)


class Downloads:
    """Counts what agents take in of the coordinator's messages.

    Args:
        federation: its name.
        columns: of all agents; changed.

    Attributes:
        blobs: SHA-256 of the latest plan's blobs: what the bits of `Columns.held` stand for.
    """

    def __init__(self, federation: str, columns: Columns) -> None:
        self.blobs: tuple[str, ...] = ()
        self._topics = Topics(federation)
        self._columns = columns
        #: Bytes of the chunks of each blob that is out there.
        self._bytes: dict[str, int] = {}

    def started(self, status: Publish, package: Iterable[Publish]) -> int:
        """Counts what every agent takes in at its start; returns the bytes before the package."""
        seen = _size(status)
        self._columns.received += seen + sum(map(_size, package))
        self._columns.credited += seen
        return seen

    def published(self, action: object) -> None:
        """Takes what the coordinator publishes."""
        if isinstance(action, Publish) and action.payload:
            topic = self._topics.parse(action.topic)
            if isinstance(topic, ChunkTopic):
                before = self._bytes.get(topic.sha256, 0) if topic.index else 0
                self._bytes[topic.sha256] = before + _size(action)
            elif isinstance(topic, RoundTopic):
                self._columns.received += _size(action)

    def fetched(self, plan: messages.RoundPlan, asked: NDArray[np.int64]) -> None:
        """Counts θ, and what travels beside it, of agents that are asked and do not have it."""
        wanted = {ref.sha256: self._bytes[ref.sha256] for ref in plan.blobs.values()}
        self.blobs = fetch(self._columns, self.blobs, wanted, asked)
        self._bytes = wanted


def fetch(
    columns: Columns, before: Sequence[str], wanted: Mapping[str, int], asked: NDArray[np.int64]
) -> tuple[str, ...]:
    """Counts the blobs that agents fetch for a plan; every agent frees those of the plan before.

    Args:
        columns: of all agents; changed.
        before: SHA-256 of the blobs that the bits of `columns.held` stand for.
        wanted: bytes of the packets of each blob of the plan, by its SHA-256.
        asked: numbers of the agents that are asked.

    Returns:
        What the bits stand for now.
    """
    kept = np.zeros_like(columns.held)
    for place, sha256 in enumerate(wanted):
        if sha256 in before:
            kept |= (columns.held >> before.index(sha256) & 1) << place
        lacking = asked[kept[asked] >> place & 1 == 0]
        columns.received[lacking] += wanted[sha256]
    kept[asked] = (1 << len(wanted)) - 1
    columns.held[:] = kept
    return tuple(wanted)


def _size(message: Publish) -> int:
    return publish_packet_bytes(message.topic, len(message.payload))
