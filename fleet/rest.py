"""What must hold once nothing goes wrong any more: everybody knows the end, no queue is long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from broker import messages
from broker.messages import RoundPlan
from broker.topics import RoundTopic, Topics
from fleet.agent_shell import AgentShell
from fleet.coordinator_shell import CoordinatorShell
from fleet.shells import World

#: Messages that a link or the broker may still hold when all is quiet.
_QUIET_QUEUE = 64


class Rest(Protocol):
    """A simulation that has come to rest."""

    world: World
    coordinator: CoordinatorShell
    agents: dict[str, AgentShell]


def rest_problems(rest: Rest, fed: Mapping[str, int]) -> Iterator[str]:
    """What is wrong, in words; nothing when all is well.

    Args:
        rest: the simulation.
        fed: bytes that the machine of each process was handed in its present boot.
    """
    yield from _coordinator_problems(rest)
    for name, shell in rest.agents.items():
        if shell.alive:
            yield from _agent_problems(rest, name, shell, fed.get(name, 0))


def _coordinator_problems(rest: Rest) -> Iterator[str]:
    coordinator, agents = rest.coordinator.coordinator, len(rest.agents)
    if len(coordinator.roster) > agents:
        yield f"the roster has {len(coordinator.roster)} agents of {agents}"
    records = coordinator.progress.records
    committed = [record.version for record in records if record.status == "committed"]
    if committed != list(range(1, coordinator.progress.version + 1)):
        yield f"the committed rounds have the versions {committed}"
    ids = [record.round_id for record in records]
    if ids != sorted(set(ids)):
        yield f"the rounds are {ids}"


def _agent_problems(rest: Rest, name: str, shell: AgentShell, fed: int) -> Iterator[str]:
    link, broker = shell.link, rest.world.broker
    if link.counters.down != fed:
        yield f"the link of {name} counts {link.counters.down} bytes, its machine was handed {fed}"
    if link.unsent > _QUIET_QUEUE:
        yield f"{link.unsent} messages of {name} wait to be sent"
    if broker.backlog(shell.client_id) > _QUIET_QUEUE:
        yield f"{broker.backlog(shell.client_id)} messages for {name} wait at the broker"
    if shell.disk.chunk_bytes > 3 * shell.agent.facts.max_blob_bytes:
        yield f"{name} keeps {shell.disk.chunk_bytes} bytes of chunks"
    topic = Topics(shell.device.federation).name(RoundTopic())
    retained = broker.retained(topic)
    if retained is None or (shell.client_id, topic) in broker.dropped:
        return  # the broker forgot the plan, or did not pass it on: nobody can know better
    newest = messages.decode(retained, RoundPlan)
    held = shell.agent.plan
    if held != newest:
        yield (
            f"{name} knows round {held.round_id if held else None} ({held.state if held else '-'}),"
            f" the newest is {newest.round_id} ({newest.state})"
        )
