"""Invariants: genuine histories pass, and each kind of manipulated history is detected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.memory.broker import Message
from broker.protocol import messages
from broker.protocol.messages import AgentStatus, RoundPlan
from broker.protocol.topics import RoundTopic, Topics
from broker.service.events import MessageArrived
from coordinator.machine.events import Commit, RoundEnded, SaveOpenRound, StoreUpdate
from edge_agent.machine.events import SpoolUpdate, StartJob
from fleet.virtual.event_trace import Began, BrokerKilled, Ended, Entry, Flushed, Handled, Sent
from fleet.virtual.faults import COORDINATOR, Crash, FaultPlan
from fleet.virtual.invariants import LAST, Invariants, InvariantViolated
from fleet.virtual.scenario_generator import draw_setting
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Simulation
from models.zoo import load_zoo

PACKAGE = load_zoo("house_price")
TOPICS = Topics("sweep")
#: A run of five agents whose coordinator dies once, in the middle of a round.
SEED = 3
FAULTS = FaultPlan(crashes=(Crash(who=(COORDINATOR,), at_s=3.0, after_actions=1, down_s=1.0),))

History = list[Entry]


@dataclasses.dataclass
class Run:
    simulation: Simulation
    history: History

    def check(self, history: History) -> Invariants:
        invariants = Invariants(self.simulation.setting.config, PACKAGE, SEED)
        for entry in history:
            invariants(entry)
        return invariants


def play() -> Run:
    history: History = []
    setting = draw_setting(SEED, PACKAGE, FAULTS, SimulatedWorker(), [history.append])
    simulation = Simulation(setting)
    simulation.run(settle_s=60.0)
    return Run(simulation, history)


@pytest.fixture(scope="module")
def run() -> Run:
    return play()


def fails(run: Run, history: History, words: str) -> InvariantViolated:
    with pytest.raises(InvariantViolated, match=words) as caught:
        run.check(history)
    assert caught.value.seed == SEED
    assert 0 < len(caught.value.last) <= LAST
    assert caught.value.exit_code == 7
    return caught.value


def actions_changed(history: History, change: Callable[[Any], Iterator[Any]]) -> History:
    """The history with every action replaced by what `change` makes of it."""
    return [
        dataclasses.replace(entry, actions=tuple(b for a in entry.actions for b in change(a)))
        if isinstance(entry, Handled)
        else entry
        for entry in history
    ]


def first(history: History, kind: type[Any]) -> tuple[int, Any]:
    """Where an action of a kind is for the first time, and the action."""
    for number, entry in enumerate(history):
        for action in entry.actions if isinstance(entry, Handled) else ():
            if isinstance(action, kind):
                return number, action
    raise AssertionError(f"no {kind.__name__}")


def test_a_genuine_history_passes_and_is_checked(run: Run) -> None:
    invariants = run.check(run.history)
    invariants.check_quiescence(run.simulation)
    commits = sum(isinstance(a, Commit) for e in run.history for a in getattr(e, "actions", ()))
    assert commits == run.simulation.setting.config.rounds
    assert any(isinstance(entry, Ended) and entry.how == "crash" for entry in run.history)
    assert invariants.checks > len(run.history)


def test_a_record_of_a_huge_cohort_may_name_nobody(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_names(action: Any) -> Iterator[Any]:
        if isinstance(action, Commit):
            record = msgspec.structs.replace(action.record, agents={})
            yield dataclasses.replace(action, record=record)
        else:
            yield action

    history = actions_changed(run.history, without_names)
    fails(run, history, "names other agents than its stored updates: ")
    monkeypatch.setattr("fleet.virtual.invariants.MOST_AGENTS", 1)
    run.check(history)


def test_a_theta_that_is_off_by_its_last_bit(run: Run) -> None:
    def nudge(action: Any) -> Iterator[Any]:
        if isinstance(action, Commit) and action.version == 2:
            theta = action.theta.copy()
            theta[0] = np.nextafter(theta[0], np.float32(np.inf))
            action = dataclasses.replace(action, theta=theta)
        yield action

    fails(run, actions_changed(run.history, nudge), "version 2 does not follow from its .* updates")


def test_an_update_that_counts_twice(run: Run) -> None:
    def twice(action: Any) -> Iterator[Any]:
        yield action
        if isinstance(action, StoreUpdate):
            yield action

    fails(run, actions_changed(run.history, twice), "a second update of pi-. counts in round 1")


def test_an_update_that_counts_and_was_not_stored(run: Run) -> None:
    _, lost = first(run.history, StoreUpdate)

    def lose(action: Any) -> Iterator[Any]:
        if action is not lost:
            yield action

    fails(run, actions_changed(run.history, lose), "before its update is on disk|round 1 counts")


def test_an_update_of_another_round(run: Run) -> None:
    def shift(action: Any) -> Iterator[Any]:
        if isinstance(action, StoreUpdate):
            action = msgspec.structs.replace(action, round_id=action.round_id + 1)
        yield action

    fails(run, actions_changed(run.history, shift), "stored for round 2, 1 is open")


def test_a_receipt_before_the_disk(run: Run) -> None:
    number, _ = first(run.history, StoreUpdate)
    early = [e for n, e in enumerate(run.history) if n < number or not isinstance(e, Flushed)]
    fails(run, early, "gets a receipt for round 1 before its update is on disk")


def test_a_version_that_is_left_out(run: Run) -> None:
    def skip(action: Any) -> Iterator[Any]:
        if isinstance(action, Commit):
            action = dataclasses.replace(action, version=action.version + 1)
        yield action

    fails(run, actions_changed(run.history, skip), "version 2 committed after 0")


def test_a_round_that_is_committed_twice(run: Run) -> None:
    def twice(action: Any) -> Iterator[Any]:
        yield action
        if isinstance(action, Commit):
            yield dataclasses.replace(action, version=action.version + 1)

    fails(run, actions_changed(run.history, twice), "round 1 committed, 1 was open")


def test_a_round_that_is_opened_again(run: Run) -> None:
    def twice(action: Any) -> Iterator[Any]:
        yield action
        if isinstance(action, SaveOpenRound):
            yield action

    fails(run, actions_changed(run.history, twice), "round 1 opened again")


def test_a_round_for_an_old_version(run: Run) -> None:
    def age(action: Any) -> Iterator[Any]:
        if isinstance(action, SaveOpenRound) and action.plan.round_id == 2:
            plan = msgspec.structs.replace(action.plan, version=0)
            action = dataclasses.replace(action, plan=plan)
        yield action

    fails(run, actions_changed(run.history, age), "round 2 is for version 0, 1 is current")


def test_a_record_that_miscounts_its_bytes(run: Run) -> None:
    def add(action: Any) -> Iterator[Any]:
        if isinstance(action, RoundEnded):
            record = msgspec.structs.replace(action.record, bytes_up=action.record.bytes_up + 1)
            action = dataclasses.replace(action, record=record)
        yield action

    fails(run, actions_changed(run.history, add), "bytes up, .* arrived")


def test_an_agent_that_miscounts_its_bytes(run: Run) -> None:
    unheard = [
        entry
        for entry in run.history
        if not (
            isinstance(entry, Handled)
            and entry.node == "pi-0"
            and isinstance(entry.event, MessageArrived)
            and entry.event.topic.endswith("program")
        )
    ]
    fails(run, unheard, "pi-0 counts .* bytes received, its link delivered")


def test_a_restart_with_another_theta(run: Run) -> None:
    number, begin = next(
        (n, e)
        for n, e in enumerate(run.history)
        if isinstance(e, Began) and e.node == COORDINATOR and e.instance == 2
    )
    assert isinstance(begin, Began)
    assert begin.theta is not None
    for change in ({"theta": begin.theta + 1}, {"version": begin.version + 1}):
        other = list(run.history)
        other[number] = dataclasses.replace(begin, **change)
        fails(run, other, "the coordinator loads version")


def test_two_jobs_at_once(run: Run) -> None:
    def twice(action: Any) -> Iterator[Any]:
        yield action
        if isinstance(action, StartJob):
            yield action

    fails(run, actions_changed(run.history, twice), "runs two jobs at once")


def test_an_update_that_was_not_spooled(run: Run) -> None:
    def forget(action: Any) -> Iterator[Any]:
        if not isinstance(action, SpoolUpdate):
            yield action

    fails(
        run, actions_changed(run.history, forget), "an update of round 1 that is not in its spool"
    )


def test_an_announcement_that_goes_back(run: Run) -> None:
    plans = [e for e in run.history if isinstance(e, Sent) and e.topic == TOPICS.name(RoundTopic())]
    last = run.history[-1]
    back = dataclasses.replace(plans[0], time_s=last.time_s)
    fails(run, [*run.history, back], r"round 1 of version 0 announced after \(")


def test_an_announcement_of_what_is_not_committed(run: Run) -> None:
    number, sent = next(
        (n, e)
        for n, e in enumerate(run.history)
        if isinstance(e, Sent) and e.topic == TOPICS.name(RoundTopic())
    )
    plan = msgspec.structs.replace(messages.decode(sent.payload, RoundPlan), version=1)
    ahead = dataclasses.replace(sent, payload=messages.encode(plan))
    fails(run, [*run.history[:number], ahead], "version 1 announced, 0 is committed")


def test_time_that_runs_back(run: Run) -> None:
    late = BrokerKilled(run.history[-1].time_s + 1.0, "all")
    fails(run, [late, run.history[0]], "time runs back")


def test_an_agent_without_the_newest_plan_and_without_a_reason() -> None:
    run = play()
    invariants, broker = run.check(run.history), run.simulation.world.broker
    topic = TOPICS.name(RoundTopic())
    newest = broker.retained(topic)
    assert newest is not None
    plan = msgspec.structs.replace(messages.decode(newest, RoundPlan), round_id=99)
    broker.restart()  # nobody is connected when the next plan comes
    broker.accept(Message.of(topic, messages.encode(plan), retain=True))
    with pytest.raises(InvariantViolated, match=r"knows round \d+ .*, the newest is 99"):
        invariants.check_quiescence(run.simulation)


def test_bytes_that_no_machine_received() -> None:
    run = play()
    invariants = run.check(run.history)
    run.simulation.agents["pi-1"].link.counters.down += 1
    with pytest.raises(InvariantViolated, match="the link of pi-1 counts"):
        invariants.check_quiescence(run.simulation)


def test_a_roster_of_invented_agents() -> None:
    run = play()
    invariants = run.check(run.history)
    invariants.watch(run.simulation)
    roster = run.simulation.coordinator.coordinator.roster
    for number in range(10):
        roster.update(f"ghost-{number}", AgentStatus(state="online", agent_instance="b"), 0.0)
    last = next(e for e in run.history if isinstance(e, Handled) and e.node == COORDINATOR)
    with pytest.raises(InvariantViolated, match="the roster has"):
        invariants(dataclasses.replace(last, time_s=run.history[-1].time_s))
