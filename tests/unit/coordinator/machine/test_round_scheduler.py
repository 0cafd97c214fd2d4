"""When the next round may begin."""

from __future__ import annotations

import msgspec

from broker.protocol.messages import AgentStatus
from coordinator.config import CohortConfig, CoordinatorConfig, StartConfig
from coordinator.machine.events import Waiting
from coordinator.machine.roster import Roster
from coordinator.machine.round_scheduler import RoundScheduler


def config(**changes: object) -> CoordinatorConfig:
    start = StartConfig(agents=3, timeout_s=60.0)
    whole = CoordinatorConfig(federation="f", model="house_price", start=start)
    return msgspec.structs.replace(whole, cohort=CohortConfig(at_least=2), **changes)


def roster(count: int) -> Roster:
    made = Roster()
    for number in range(count):
        status = AgentStatus(
            state="online",
            agent_instance="b",
            train_examples=10,
            codecs=("int8",),
            algorithms=("fedavg",),
            phases=("train",),
        )
        made.update(f"pi-{number}", status, 0.0)
    return made


def ask(
    scheduler: RoundScheduler, agents: Roster, now_s: float, *, first: bool
) -> list[str] | Waiting | None:
    return scheduler.eligible_agents(
        lambda: agents.eligible_agents("train", "int8"), agents, now_s, first=first
    )


def test_the_first_round_waits_for_more_until_its_patience_ends() -> None:
    scheduler = RoundScheduler(config(), restarted=False)
    assert scheduler.connected(0.0)
    assert ask(scheduler, roster(2), 1.0, first=True) == Waiting(2, 3, 0)
    assert ask(scheduler, roster(2), 2.0, first=True) is None  # told before
    assert ask(scheduler, roster(3), 3.0, first=True) == ["pi-0", "pi-1", "pi-2"]
    assert ask(scheduler, roster(2), 3.0, first=False) == ["pi-0", "pi-1"]
    assert ask(scheduler, roster(2), 61.0, first=True) == ["pi-0", "pi-1"]
    assert ask(scheduler, roster(1), 61.0, first=True) == Waiting(1, 2, 0)


def test_rounds_that_fail_are_further_and_further_apart_until_one_succeeds() -> None:
    scheduler = RoundScheduler(config(), restarted=False)
    assert [scheduler.abandoned(100.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert scheduler.due_s() == 160.0
    scheduler.committed()
    assert scheduler.abandoned(200.0) == 1.0
    for _ in range(2000):
        scheduler.abandoned(300.0)
    assert scheduler.due_s() == 360.0


def test_after_a_restart_births_have_a_moment_to_arrive() -> None:
    scheduler = RoundScheduler(config(), restarted=True)
    assert scheduler.connected(10.0)
    assert scheduler.pause_until_s == 11.0
    assert not scheduler.connected(20.0)  # a reconnection is no start
    assert scheduler.pause_until_s == 11.0


def test_a_large_fleet_that_is_too_small_is_not_counted_at_every_birth() -> None:
    scheduler = RoundScheduler(config(start=StartConfig(agents=10_000)), restarted=False)
    scheduler.connected(0.0)
    assert ask(scheduler, roster(1100), 1.0, first=True) == Waiting(1100, 10_000, 0)
    assert 1.009 < scheduler.due_s() < 1.011


def test_what_agents_lack_is_told_with_the_wait_and_again_when_it_changes() -> None:
    scheduler = RoundScheduler(config(), restarted=False)
    scheduler.connected(0.0)
    agents = roster(1)
    assert ask(scheduler, agents, 61.0, first=True) == Waiting(1, 2)
    old = AgentStatus(state="online", agent_instance="b", phases=("train",))
    agents.update("old", old, 61.0)
    assert ask(scheduler, agents, 62.0, first=True) == Waiting(
        1, 2, lacking="1 does not know algorithm 'fedavg'"
    )
    assert ask(scheduler, agents, 63.0, first=True) is None


def test_an_agent_that_comes_and_goes_for_ever_is_told_every_few_seconds() -> None:
    scheduler = RoundScheduler(config(), restarted=False)
    scheduler.connected(0.0)
    told = []
    for step in range(1000):  # 20 changes a second
        if found := ask(scheduler, roster(step % 2), 0.05 * step, first=True):
            told.append(found)
    assert 10 <= len(told) <= 10 + 50 / 5
    # The last change is told, later.
    last = told[-1]
    assert isinstance(last, Waiting)
    other = roster(1 - last.able)
    assert ask(scheduler, other, 56.0, first=True) == Waiting(1 - last.able, 3)


def test_a_fleet_that_comes_in_is_not_looked_through_while_too_few_are_here() -> None:
    start = StartConfig(agents=500, timeout_s=600.0)
    scheduler = RoundScheduler(config(start=start), restarted=False)
    scheduler.connected(0.0)
    agents, looks = roster(499), []

    def look() -> list[str]:
        looks.append(len(agents))
        return agents.eligible_agents("train", "int8")

    def ask_again(now_s: float) -> list[str] | Waiting | None:
        return scheduler.eligible_agents(look, agents, now_s, first=True)

    assert ask_again(0.0) == Waiting(499, 500, 0)
    assert [ask_again(now_s) for now_s in (0.01, 0.02, 0.03)] == [None, None, None]
    assert looks == [499]
    agents = roster(500)
    found = ask_again(0.031)
    assert isinstance(found, list)
    assert len(found) == 500
