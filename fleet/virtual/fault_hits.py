"""Agents that each rule of a fault plan concerns, for people and for the report of a simulation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from fedge.console import counted
from fleet.virtual.faults import COORDINATOR, FaultPlan, Names, concerns

#: Agents that a line names, and that the report does; it counts the others.
_SHOWN, _LISTED = 5, 20
#: Lines, rules that one names, and rules that stand in the report.
_LINES, _RULES_A_LINE, _RULES = 10, 8, 1000
#: Rules that name processes.
_OF_SOMEBODY = ("partitions", "slow_links", "crashes", "random_crashes", "clock_skews")
#: Rules for all packets and all clients of the broker.
_OF_EVERYBODY = ("delay", "reorder", "duplicate", "cut", "drop", "max_queued_messages")
_SIGNS = "*?["


@dataclass(frozen=True)
class FaultHit:
    """Processes that one rule of a fault plan concerns.

    Attributes:
        rule: key of the plan, with the place in its list: `crashes[0]`.
        agents: number of agents.
        names: of the first ones, at most 20.
        coordinator: whether it concerns the coordinator too.
    """

    rule: str
    agents: int
    names: tuple[str, ...]
    coordinator: bool

    @property
    def whom(self) -> str:
        """In words: `2 agents (pi-1, pi-2)`."""
        shown = ", ".join(self.names[:_SHOWN]) + ", …" * (self.agents > _SHOWN)
        agents = f"{counted(self.agents, 'agent')} ({shown})" if self.agents else "no agent"
        if not self.coordinator:
            return agents
        return "the coordinator" + (f" and {agents}" if self.agents else "")


def fault_hits(plan: FaultPlan, agents: Collection[str]) -> list[FaultHit]:
    """Returns what each rule of a plan that does anything concerns, 1,000 rules at most.

    Args:
        plan: of the faults.
        agents: ids of all agents, in their order.
    """
    return list(islice(_hits(plan, agents), _RULES))


def hit_lines(hits: Sequence[FaultHit]) -> list[str]:
    """Returns a line for each rule; rules in a row that concern the same share theirs.

    Of many lines the first ones.
    """
    groups = [(whom, list(group)) for whom, group in groupby(hits, lambda hit: hit.whom)]
    lines = []
    for whom, group in groups[:_LINES]:
        rules = [hit.rule for hit in group]
        if len(rules) > _RULES_A_LINE:
            rules[_RULES_A_LINE:] = [f"{len(rules) - _RULES_A_LINE} more"]
        lines.append(f"faults: {', '.join(rules)}: {whom}")
    more = sum(len(group) for _, group in groups[_LINES:])
    return lines + [f"faults: {counted(more, 'more rule')}: see report.json"] * (more > 0)


def hit_document(hits: Sequence[FaultHit]) -> dict[str, Any]:
    """Returns the hits as JSON-ready values, by rule."""
    return {
        hit.rule: {"agents": hit.agents, "names": list(hit.names), "coordinator": hit.coordinator}
        for hit in hits
    }


def _hits(plan: FaultPlan, agents: Collection[str]) -> Iterator[FaultHit]:
    everyone = tuple(islice(agents, _LISTED))
    nothing = FaultPlan()
    for key in _OF_EVERYBODY:
        if getattr(plan, key) != getattr(nothing, key):
            yield FaultHit(key, len(agents), everyone, coordinator=True)
    for number in range(len(plan.broker_restarts)):
        yield FaultHit(f"broker_restarts[{number}]", len(agents), everyone, coordinator=True)
    for key in _OF_SOMEBODY:
        for number, part in enumerate(getattr(plan, key)):
            found = _concerned(part.who, agents)
            # The coordinator's clock is the simulation's.
            is_coordinator = key != "clock_skews" and concerns(part.who, COORDINATOR)
            names = tuple(found[:_LISTED])
            yield FaultHit(f"{key}[{number}]", len(found), names, is_coordinator)


def _concerned(who: Names, agents: Collection[str]) -> list[str]:
    """Returns the agents that names and patterns match, in the order of `agents`."""
    if any(sign in name for name in who for sign in _SIGNS):
        return [name for name in agents if concerns(who, name)]
    ids = {name.removeprefix("agent:") for name in who}
    return [name for name in agents if name in ids]
