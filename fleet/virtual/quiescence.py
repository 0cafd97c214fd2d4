"""Checks of a quiescent simulation: all agents have the newest plan, no queue is long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from broker.protocol import messages, signed_messages
from broker.protocol.messages import RoundPlan
from broker.protocol.topics import RoundTopic, Topics
from edge_agent.machine.plan_order import stage
from fleet.virtual.agent_shell import AgentShell
from fleet.virtual.coordinator_shell import CoordinatorShell
from fleet.virtual.faults import COORDINATOR
from fleet.virtual.shells import CohortProcess, World

#: Messages that a link may still hold at quiescence, and that the broker may hold for one client:
#: a package takes minutes over the slowest links, and its chunks were requested more than once.
_QUIET_QUEUE = 64
_BACKLOG = 1000
#: Package, weights, and one vector that an algorithm shares.
_FETCHES = 3
#: Unsent messages that a process may have for each agent, and for itself.
_UNSENT = 200


class SimulatedFederation(Protocol):
    """The processes of a simulation and their world, as the checks read them."""

    world: World
    coordinator: CoordinatorShell
    agents: dict[str, AgentShell]
    cohorts: dict[str, CohortProcess]


def quiescence_problems(federation: SimulatedFederation, fed: Mapping[str, int]) -> Iterator[str]:
    """Yields the violations at quiescence, in words.

    Args:
        federation: the simulation.
        fed: bytes that the machine of each process received in its present instance.
    """
    yield from _coordinator_problems(federation)
    for name, shell in federation.agents.items():
        if shell.alive:
            yield from _agent_problems(federation, name, shell, fed.get(name, 0))


def bound_problems(federation: SimulatedFederation, node: str) -> Iterator[str]:
    """Yields the limits of memory, queues and fetches that a process exceeds, in words."""
    agents = len(federation.agents) + sum(each.size for each in federation.cohorts.values())
    if node in federation.cohorts:
        link = federation.cohorts[node].link
    elif node == COORDINATOR:
        machine, link = federation.coordinator.coordinator, federation.coordinator.link
        if len(machine.roster) > agents:
            yield f"the roster has {len(machine.roster)} agents of {agents}"
        if machine.uploading > agents:
            yield f"{machine.uploading} updates of {agents} agents are incomplete"
    else:
        shell = federation.agents[node]
        link = shell.link
        if shell.agent.fetching > _FETCHES:
            yield f"{node} fetches {shell.agent.fetching} blobs at once"
        if shell.disk.chunk_bytes > 3 * shell.agent.facts.max_blob_bytes:
            yield f"{node} keeps {shell.disk.chunk_bytes} bytes of chunks"
    if link.unsent > _UNSENT + agents * _UNSENT:
        yield f"{link.unsent} messages of {node} wait to be sent"


def _coordinator_problems(federation: SimulatedFederation) -> Iterator[str]:
    coordinator = federation.coordinator.coordinator
    records = federation.coordinator.store.history()
    committed = [record.version for record in records if record.status == "committed"]
    if committed != list(range(1, coordinator.progress.version + 1)):
        yield f"the committed rounds have the versions {committed}"
    ids = [record.round_id for record in records]
    if ids != sorted(set(ids)):
        yield f"the rounds are {ids}"


def _agent_problems(
    federation: SimulatedFederation, name: str, shell: AgentShell, fed: int
) -> Iterator[str]:
    link, broker = shell.link, federation.world.broker
    if link.counters.down != fed:
        yield f"the link of {name} counts {link.counters.down} bytes, its machine received {fed}"
    if link.unsent > _QUIET_QUEUE:
        yield f"{link.unsent} messages of {name} wait to be sent"
    if broker.backlog(shell.client_id) > _BACKLOG:
        yield f"{broker.backlog(shell.client_id)} messages for {name} wait at the broker"
    topic = Topics(shell.device.federation).name(RoundTopic())
    retained = broker.retained(topic)
    if retained is None or (shell.client_id, topic) in broker.dropped:
        return  # the broker lost or dropped the plan: the agent cannot know it
    if broker.backlog(shell.client_id):
        return  # the plan may still be queued, over a slow link
    newest = messages.decode(signed_messages.split(retained)[0], RoundPlan)
    held = shell.agent.plan
    # The retained plan may be older: a resent copy of an earlier plan may reach the broker last.
    if held is None or stage(held) < stage(newest):
        yield (
            f"{name} knows round {held.round_id if held else None} ({held.state if held else '-'}),"
            f" the newest is {newest.round_id} ({newest.state})"
        )
