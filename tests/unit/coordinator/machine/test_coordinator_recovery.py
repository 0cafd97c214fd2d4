"""A coordinator that was killed goes on where the store says, and ends at the same θ."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.config import StartConfig
from coordinator.machine.events import Commit, RoundEnded, SaveOpenRound, SaveRound, StoreUpdate
from coordinator.machine.progress import Progress
from coordinator.machine.standing import Standing
from coordinator.storage.store import Store
from coordinator.storage.update_log import LOG_FILE
from learning.algorithms.algorithm import ServerState
from learning.vector.parameters import F32
from tests.unit.coordinator.machine.coordinator_stage import (
    PACKAGE,
    SESSION,
    FakeAgent,
    Stage,
    config,
    only,
)

DELTAS = {"a": [0.125, -3.0, 1e-3], "b": [7.0, 0.3, -1e-7], "c": [-2.5, 0.1, 0.7]}


def keep(store: Store, stage: Stage, seen: int) -> int:
    """What the service would have stored of the stage's actions since `seen`."""
    for action in stage.actions[seen:]:
        match action:
            case SaveOpenRound(plan, cohort, goal):
                store.save_open_round(plan, cohort, goal)
            case StoreUpdate(agent_id=agent_id, version=version, frame=frame):
                store.add_update(agent_id, version, frame)
                store.flush()
            case Commit(version, theta, state, record, closed, _, standings):
                store.commit(version, theta, state, record, closed, standings=standings)
            case SaveRound(record, closed, _, standings):
                store.save_round(record, closed, standings=standings)
    return len(stage.actions)


def progress_of(store: Store) -> Progress:
    progress = store.load(PACKAGE.spec.size)
    assert progress is not None
    return progress


def settings(**changes: Any) -> Any:
    return config(start=StartConfig(agents=3), **changes)


def uninterrupted() -> F32:
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    for name, agent in agents.items():
        agent.update(DELTAS[name])
    return stage.coordinator.progress.theta


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_stored_updates_count_after_a_kill_and_theta_is_the_same_bit_for_bit(
    tmp_path: Path, killed_after: int
) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    names = list(DELTAS)
    for name in names[:killed_after]:
        agents[name].update(DELTAS[name])
    keep(store, stage, 0)
    store.close()  # killed here: what was not stored is gone

    store = Store(tmp_path)
    again = Stage(settings(), progress=progress_of(store))
    agents = {name: FakeAgent(again, name) for name in DELTAS}
    assert again.plan.round_id == 1, "the round goes on, it does not begin anew"
    for name in names[killed_after:]:
        agents[name].update(DELTAS[name])
    again.later(1.0)
    keep(store, again, 0)
    assert again.record.round_id == 1
    assert again.record.reported == 3
    np.testing.assert_array_equal(again.coordinator.progress.theta, uninterrupted())
    np.testing.assert_array_equal(progress_of(store).theta, uninterrupted())
    store.close()


def test_a_kill_between_the_last_update_and_the_commit_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    for name, agent in agents.items():
        agent.update(DELTAS[name])
    for action in stage.actions:
        if isinstance(action, SaveOpenRound) and action.plan.round_id == 1:
            store.save_open_round(action.plan, action.cohort, action.goal)
        if isinstance(action, StoreUpdate):
            store.add_update(action.agent_id, action.version, action.frame)
    store.flush()

    again = Stage(settings(), progress=progress_of(store))
    assert not only(again.actions, RoundEnded)
    again.later(1.0)
    assert again.record.reported == 3
    np.testing.assert_array_equal(again.coordinator.progress.theta, uninterrupted())
    store.close()


def test_a_stored_update_that_rotted_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    for name, agent in {name: FakeAgent(stage, name) for name in DELTAS}.items():
        if name != "c":
            agent.update(DELTAS[name])
    keep(store, stage, 0)
    (first, *_) = only(stage.actions, StoreUpdate)
    content = (tmp_path / LOG_FILE).read_bytes()
    rotten = first.frame[:-1] + bytes([first.frame[-1] ^ 1])  # another number
    (tmp_path / LOG_FILE).write_bytes(content.replace(first.frame, rotten))
    stored = progress_of(store).open
    assert stored is not None
    assert [name for name, _ in stored.frames] == ["b"]
    assert "the update of a is damaged and left out" in caplog.text
    store.close()


def test_an_update_sent_again_after_the_restart_gets_its_receipt_and_counts_once(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    frame = agents["a"].frame(DELTAS["a"])
    agents["a"].send(frame, 1)
    keep(store, stage, 0)

    again = Stage(settings(), progress=progress_of(store))
    agents = {name: FakeAgent(again, name) for name in DELTAS}
    receipt = agents["a"].receipt(agents["a"].send(frame, 1))
    assert receipt.accepted
    agents["b"].update(DELTAS["b"])
    agents["c"].update(DELTAS["c"])
    again.later(1.0)
    assert again.record.reported == 3
    assert again.record.refused == 0
    np.testing.assert_array_equal(again.coordinator.progress.theta, uninterrupted())
    store.close()


def test_the_update_is_stored_before_its_receipt_is_sent() -> None:
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    actions = agents["a"].update(DELTAS["a"])
    assert isinstance(actions[0], StoreUpdate)
    assert agents["a"].receipt(actions[1:]).accepted


def test_the_commit_forgets_the_round_and_its_updates(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings(rounds=1))
    for name, agent in {name: FakeAgent(stage, name) for name in DELTAS}.items():
        agent.update(DELTAS[name])
    keep(store, stage, 0)
    progress = progress_of(store)
    assert progress.open is None
    assert progress.version == 1
    assert progress.last_round == 1
    store.close()


def test_what_an_agent_did_wrong_is_stored_with_the_commit_before_anybody_measures(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings(rounds=2, max_update_norm=1e3))
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    agents["a"].update([1e9, 0.0, 0.0])
    for name in "bc":
        agents[name].update(DELTAS[name])
    (commit,) = only(stage.actions, Commit)
    assert [name for name, standing in commit.standings if standing.faults] == ["a"]
    assert (commit.record.refused, commit.record.refusals) == (1, {"norm": 1})
    del stage.actions[stage.actions.index(commit) + 1 :]  # killed before the evaluation
    keep(store, stage, 0)
    store.close()
    with closing(Store(tmp_path)) as found:
        assert found.standing("a").faults == 1


def test_the_session_of_a_store_never_changes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.session(SESSION) == SESSION
    store.close()
    store = Store(tmp_path)
    assert store.session("another") == SESSION
    store.close()


def test_a_round_that_goes_on_says_that_the_coordinator_has_started_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    for name in DELTAS:
        FakeAgent(stage, name)
    keep(store, stage, 0)
    again = Stage(settings(), start="c2", progress=progress_of(store))
    assert stage.plan.coordinator_instance == "c1"
    assert again.plan == msgspec.structs.replace(stage.plan, coordinator_instance="c2")
    store.close()


def test_an_open_round_of_another_package_is_dropped_and_the_next_one_begins(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    agents["a"].update(DELTAS["a"])
    keep(store, stage, 0)
    exported_again = msgspec.structs.replace(PACKAGE.spec, source="exported again")
    package = dataclasses.replace(PACKAGE, spec=exported_again)
    assert package.digest != PACKAGE.digest
    again = Stage(settings(), start="c2", progress=progress_of(store), package=package)
    for name in DELTAS:
        FakeAgent(again, name)
    again.later(1.0)
    assert (again.plan.round_id, again.plan.package) == (2, package.digest)
    store.close()


def test_an_agent_that_was_shut_out_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(PACKAGE.initial, ServerState())
    stage = Stage(settings())
    agents = {name: FakeAgent(stage, name) for name in DELTAS}
    agents["a"].update(DELTAS["a"])
    keep(store, stage, 0)
    store.save_standing("b", Standing().quarantined("its sensor is broken", by_operator=True))
    store.flush()
    again = Stage(settings(), progress=progress_of(store))
    agents = {name: FakeAgent(again, name) for name in DELTAS}
    agents["c"].update(DELTAS["c"])
    again.later(1.0)
    assert again.record.declined == {"b": "quarantined"}
    assert again.record.details == {"quarantined": "b: its sensor is broken"}
    assert sorted(again.record.agents) == ["a", "c"]
    store.close()
