"""Orders of an operator, on the store of a coordinator that does not run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from broker.protocol.messages import AgentStatus
from coordinator.config import CoordinatorConfig
from coordinator.history import history_document, history_text
from coordinator.operate import ROLE, give, take_up
from coordinator.records.course import Course
from coordinator.records.records import AgentResult
from coordinator.storage.orders import Forget, Order, Outcome, Quarantine, Release, Rollback
from coordinator.storage.store import Store, ranges
from fedge.command import cli
from fedge.files import claimed, holder
from learning.algorithms.algorithm import ServerState
from models.package.stored_versions import read_version
from models.zoo import load_zoo
from tests.unit.coordinator.test_stopping import record
from tests.unit.coordinator.test_store import theta

PACKAGE = load_zoo("house_price")
LOSSES = [0.5, 0.2, 0.9, 0.8]
SCAFFOLD = {"name": "scaffold"}


def config(**changes: Any) -> CoordinatorConfig:
    return CoordinatorConfig(federation="f", model="house_price", **changes)


def state(version: int) -> ServerState:
    return ServerState({"control": theta(version, version, version)})


def part(task: Any = "train") -> AgentResult:
    return AgentResult(task=task, loss=0.5, metrics={}, num_examples=10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Version v of θ is (v, 0, 0); c joins in round 3, and only measures."""
    with closing(Store(tmp_path)) as store:
        store.adopt("f", PACKAGE, "scaffold")
        store.session("first")
        store.begin(theta(0, 0, 0), state(0))
        course = Course()
        for number, loss in enumerate(LOSSES, 1):
            agents = {"a": part(), "b": part()} | ({"c": part("evaluate")} if number > 2 else {})
            if number == 1:
                del agents["b"]
            each = record(loss, round_id=number, version=number, agents=agents, best_round=1)
            course = course.after(each)
            store.commit(number, theta(number, 0, 0), state(number), each, (), course)
        for name in "abc":
            store.save_agent(name, AgentStatus(state="online", agent_instance="1"))
        store.flush()
        yield store


def ordered(store: Store, order: Order, **changes: Any) -> Outcome:
    settings = config(**({"algorithm": SCAFFOLD} | changes))
    return give(settings, store.path.parent, PACKAGE, order)


def test_going_back_makes_a_new_version_with_the_weights_of_the_old_one(store: Store) -> None:
    outcome = ordered(store, Rollback(2))
    assert outcome.is_done
    first, _ = outcome.text.splitlines()
    assert first == (
        "version 5 has the weights of version 2; rounds since are undone, 2 of 10 count"
    )
    progress = store.load(3)
    assert progress is not None
    assert (progress.version, progress.theta.tolist()) == (5, [2, 0, 0])
    assert progress.last_round == 4, "numbers of rounds are not used again"
    assert progress.course.committed == 2
    assert [each.status for each in store.history()] == ["committed"] * 2 + ["undone"] * 2
    assert [each.status for each in store.rounds()] == ["committed"] * 2 + ["undone"] * 2


def test_what_devices_hold_belongs_to_another_session_and_begins_anew(store: Store) -> None:
    ordered(store, Rollback(2))
    assert store.session("x") not in ("first", "x")
    progress = store.load(3)
    assert progress is not None
    assert (progress.open, progress.closed) == (None, ())
    assert progress.state.vectors["control"].tolist() == [0, 0, 0], "the mean of all c_i, now 0"


def test_the_state_of_the_server_alone_goes_back_with_the_weights(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.adopt("f", PACKAGE, "fedavgm")
        store.begin(theta(0, 0, 0), ServerState({"velocity": theta(0, 0, 0)}))
        velocity = ServerState({"velocity": theta(1, 2, 3)})
        store.commit(1, theta(1, 0, 0), velocity, record(0.5))
        store.commit(2, theta(2, 0, 0), velocity, record(0.5, round_id=2, version=2))
        ordered(store, Rollback(1), algorithm="fedavgm")
        progress = store.load(3)
    assert progress is not None
    assert progress.state.vectors["velocity"].tolist() == [1, 2, 3]


def test_undone_versions_are_neither_the_best_nor_counted(store: Store) -> None:
    before = store.load(3)
    assert before is not None
    assert before.course.best_version == 2
    ordered(store, Rollback(1))
    after = store.load(3)
    assert after is not None
    assert (after.course.best_version, after.course.committed) == (1, 1)
    assert after.best[1].tolist() == [1, 0, 0]
    model = store.path.parent / "model" / "initial.npy"
    assert np.load(model).tolist() == [1, 0, 0], "what would be handed out now"


def test_one_may_go_back_to_a_version_that_was_undone(store: Store) -> None:
    ordered(store, Rollback(1))
    ordered(store, Rollback(4))
    assert [each.status for each in store.history()] == ["committed"] * 4
    progress = store.load(3)
    assert progress is not None
    assert (progress.version, progress.theta.tolist()) == (6, [4, 0, 0])
    assert store.line(6) == {0, 1, 2, 3, 4, 6}


def test_a_version_that_is_not_kept_is_refused_with_those_that_are(store: Store) -> None:
    store._db.execute("DELETE FROM versions WHERE version = 1")
    outcome = ordered(store, Rollback(1))
    assert outcome == Outcome(
        "version 1 is not kept; versions kept: 0, 2 to 4 (keep_versions)", is_done=False
    )
    assert store.versions() == [0, 2, 3, 4]


def test_a_release_of_a_version_made_by_going_back_has_the_figures_of_its_origin(
    store: Store,
) -> None:
    ordered(store, Rollback(2))
    found = read_version(store.path.parent, 5, PACKAGE.spec.fingerprint)
    assert (found.version, found.theta.tolist()) == (5, [2, 0, 0])
    assert found.evaluation == {"loss": 0.2}


def test_quarantine_and_release_change_an_agent_s_standing(store: Store) -> None:
    outcome = ordered(store, Quarantine("a", "broken sensor"))
    assert outcome.text == "a is in quarantine until it is released: it is not asked"
    standing = store.standing("a")
    assert (standing.by_operator, standing.quarantine_reason) == (True, "broken sensor")
    assert not standing.may_be_asked(1_000_000)
    assert ordered(store, Release("a")).text == "a is released: it is asked again"
    assert store.standing("a").may_be_asked(1)
    assert not ordered(store, Release("a")).is_done
    text = ordered(store, Quarantine("stranger", "x")).text
    assert text.endswith("note: no agent stranger was ever heard of")


def test_forgetting_an_agent_says_what_cannot_be_undone(store: Store) -> None:
    text = ordered(store, Forget("b")).text.splitlines()
    assert text[0] == "b is forgotten: its status, counts and its part in 3 records"
    assert text[1].startswith("its updates count in the versions 2 to 4 and all that follow")
    assert text[2].startswith("`fedge coordinator rollback --to 1`")
    assert "`fedge broker revoke`" in text[3]
    assert [agent.agent_id for agent in store.agents()] == ["a", "c"]
    named = [sorted(each.agents) for each in store.rounds()]
    assert named == [["a"], ["a"], ["a", "c"], ["a", "c"]]
    assert not ordered(store, Forget("b")).is_done


def test_one_that_only_measured_is_in_no_version(store: Store) -> None:
    text = ordered(store, Forget("c")).text
    assert "its part in 2 records" in text
    assert "updates count" not in text


def test_a_running_coordinator_is_left_the_order(store: Store, tmp_path: Path) -> None:
    settings = config(algorithm=SCAFFOLD)
    assert holder(tmp_path, ROLE) is None
    with claimed(tmp_path, ROLE), closing(Store(tmp_path)) as own:
        assert holder(tmp_path, ROLE) == os.getpid()
        own.changed_elsewhere()
        number = store.give_order(Quarantine("a", "x"))
        assert own.changed_elsewhere()
        ((order, outcome),) = take_up(settings, tmp_path, PACKAGE, own)
        assert not own.changed_elsewhere(), "its own writes are no news"
    assert order == Quarantine("a", "x")
    assert store.order_outcome(number) == outcome
    assert store.open_orders() == []


def test_the_history_shows_versions_their_figures_and_who_made_them(store: Store) -> None:
    ordered(store, Rollback(2))
    lines = history_text(store, 20).splitlines()
    assert [line.split(" · ")[0].strip() for line in lines[:5]] == [
        f"version {n}" for n in range(1, 6)
    ]
    assert "loss 0.2000" in lines[1]
    assert "(a, b)" in lines[1]
    assert lines[1].endswith(" · best, kept")
    assert lines[2].endswith(" · kept, undone")
    assert "weights of version 2 (an operator went back)" in lines[4]
    assert history_text(store, 1).startswith("… 3 earlier rounds: --last shows more")


def test_the_history_as_json_says_which_versions_count(store: Store) -> None:
    ordered(store, Rollback(2))
    document = history_document(store, 20)
    rows = document["history"]
    assert [row["counts"] for row in rows] == [True, True, False, False, True]
    assert rows[3]["trained_by"] == ["a", "b"]
    assert (rows[4]["origin"], rows[4]["status"]) == (2, "rolled_back")
    assert document["best_version"] == 2


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], "none"), ([3], "3"), ([0, 1, 2], "0 to 2"), ([1, 3, 4, 9], "1, 3 to 4, 9")],
)
def test_numbers_are_told_as_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_a_release_finds_the_model_while_the_first_run_is_under_way(store: Store) -> None:
    state = store.path.parent
    (state / "taken.tflite").mkdir()  # ends the command before it needs TensorFlow
    command = ["model", "release", str(state), "--best", "--out", str(state / "taken.tflite")]
    found = CliRunner().invoke(cli, command)
    assert f"the best version is {store.course().best_version}\n" in found.output
    assert "taken.tflite: Is a directory" in found.output
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("UPDATE meta SET value = 'my_own' WHERE key = 'model'")
    found = CliRunner().invoke(cli, command)
    assert found.exit_code == 2
    assert f"`fedge model release MODEL --state {state} --best`" in found.output


def test_a_round_that_is_being_measured_is_no_round_without_bytes(store: Store) -> None:
    under_way = record(0.4, round_id=5, version=5, agents={"a": part()}, evaluated=False)
    store.commit(5, theta(5, 0, 0), state(5), under_way)
    line = history_text(store, 1).splitlines()[1]
    assert "(a) · loss while training 0.4000 · being measured" in line
    assert " up, " not in line
