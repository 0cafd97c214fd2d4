"""What a coordinator keeps on disk, and what damage of it looks like."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol.messages import AgentStatus
from coordinator.config import CoordinatorConfig
from coordinator.machine.standing import Silence, Standing
from coordinator.records.course import Best, Course, Rule
from coordinator.records.records import AgentResult
from coordinator.report import matrix_lines, status_document, status_text
from coordinator.storage.store import Store
from fedge.errors import ConfigError, StoreError
from learning.algorithms.algorithm import ServerState
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.package.stored_versions import STORE_FILE, read_version
from models.zoo import load_zoo
from tests.unit.coordinator.test_stopping import record

PACKAGE = load_zoo("house_price")


NOTHING = ServerState()


def theta(*values: float) -> F32:
    return np.array(values, np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def loaded(store: Store) -> tuple[int, list[float]]:
    progress = store.load(3)
    assert progress is not None
    return progress.version, progress.theta.tolist()


def test_before_the_first_use_there_is_nothing(store: Store) -> None:
    assert store.load(3) is None
    assert store.rounds() == []
    assert store.agents() == []
    assert store.meta("federation") is None


def test_updates_are_for_the_owner_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    store.close()
    assert set(modes.values()) == {0o600}, modes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_start_with_sudo_leaves_the_state_to_the_service(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with closing(Store(tmp_path)):
        assert {path.stat().st_uid for path in tmp_path.iterdir()} == {65534}


def test_what_was_committed_is_there_after_opening_it_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    velocity = theta(0.1, -0.2, 1e-30)
    store.begin(theta(0, 0, 0), ServerState({"velocity": theta(0, 0, 0)}))
    store.commit(1, theta(1, 2, 3.25), ServerState({"velocity": velocity}), record(0.5))
    store.save_round(record(0.25, round_id=2, status="abandoned"))
    store.close()
    again = Store(tmp_path)
    progress = again.load(3)
    assert progress is not None
    assert (progress.version, progress.theta.tolist()) == (1, [1.0, 2.0, 3.25])
    assert not progress.theta.flags.writeable
    assert progress.state.vectors["velocity"].tobytes() == velocity.tobytes()
    assert again.history() == [record(0.5), record(0.25, round_id=2, status="abandoned")]
    assert progress.last_round == 2
    again.close()


def test_of_what_agents_did_only_the_store_keeps_all(store: Store) -> None:
    agent = AgentResult(task="train", loss=0.5, metrics={"mae": 2.0}, num_examples=1)
    store.begin(theta(0, 0, 0), NOTHING)
    full = [
        record(
            0.5, round_id=n, agents={"a": agent}, declined={"b": "too_hot"}, matrices={"c": [[1.0]]}
        )
        for n in (1, 2, 3)
    ]
    for each in full:
        store.save_round(each)
    assert store.history() == [record(0.5, round_id=n) for n in (1, 2, 3)]
    assert (store.rounds(), store.rounds(latest=2)) == (full, full[1:])


def test_a_record_that_is_saved_again_replaces_the_first(store: Store) -> None:
    store.save_round(record(0.5))
    store.save_round(record(0.25))
    assert store.rounds() == [record(0.25)]


def test_a_commit_is_all_or_nothing(store: Store) -> None:
    store.begin(theta(0, 0, 0), NOTHING)
    with pytest.raises(StoreError):
        store.commit(0, theta(1, 1, 1), NOTHING, record(0.5))  # version 0 is there
    assert store.rounds() == []
    assert loaded(store) == (0, [0.0, 0.0, 0.0])
    store.commit(1, theta(1, 1, 1), NOTHING, record(0.5))
    assert loaded(store) == (1, [1.0, 1.0, 1.0])


def test_a_process_that_is_killed_in_a_commit_leaves_the_version_before(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(theta(0, 0, 0), NOTHING)
    store.commit(1, theta(1, 1, 1), NOTHING, record(0.5))
    # A copy of the files in the middle of a transaction is what a power cut leaves.
    store._db.execute("BEGIN IMMEDIATE")
    store._insert_version(store._db, 2, theta(2, 2, 2), NOTHING)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob(f"{STORE_FILE}*"):
        if not file.name.endswith("-shm"):
            (copy / file.name).write_bytes(file.read_bytes())
    store._db.execute("ROLLBACK")
    store.close()
    again = Store(copy)
    assert loaded(again) == (1, [1.0, 1.0, 1.0])
    again.close()


@pytest.mark.parametrize(("keep", "kept"), [(0, [0, 1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4])])
def test_old_versions_are_deleted_and_rounds_are_not(
    tmp_path: Path, keep: int, kept: list[int]
) -> None:
    store = Store(tmp_path, keep_versions=keep)
    store.begin(theta(0, 0, 0), NOTHING)
    for version in range(1, 5):
        store.commit(version, theta(version, 0, 0), NOTHING, record(0.5, round_id=version))
    assert store.versions() == kept
    assert len(store.rounds()) == 4
    assert loaded(store) == (4, [4.0, 0.0, 0.0])
    store.close()


def test_it_belongs_to_one_federation_and_one_model(store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.adopt("f", PACKAGE)
    with pytest.raises(ConfigError, match=r"holds federation 'f', the configuration says 'g'"):
        store.adopt("g", PACKAGE)
    renamed = msgspec.structs.replace(PACKAGE.spec, name="other")
    with pytest.raises(ConfigError, match=r"holds model 'house_price'.*use another state_dir"):
        store.adopt("f", ModelPackage(renamed, PACKAGE.program, np.array(PACKAGE.initial)))


def test_it_belongs_to_the_algorithm_that_trained_it(store: Store) -> None:
    store.adopt("f", PACKAGE)  # a task that trains nothing
    store.adopt("f", PACKAGE, "fedavg")
    refusal = r"holds algorithm 'fedavg', the configuration says 'fedprox': use another state_dir"
    with pytest.raises(ConfigError, match=refusal):
        store.adopt("f", PACKAGE, "fedprox")
    with pytest.raises(ConfigError, match=refusal):
        store.check_algorithm("fedprox")
    store.check_algorithm("fedavg")
    store.adopt("f", PACKAGE)
    store.check_algorithm(None)


def test_another_number_of_parameters_is_refused(store: Store) -> None:
    store.begin(theta(0, 0, 0), NOTHING)
    with pytest.raises(ConfigError, match="version 0 has 3 parameters, not 4"):
        store.load(4)


def test_agents_are_kept_as_they_last_described_themselves(store: Store) -> None:
    store.save_agent("b", AgentStatus(state="online", agent_instance="1"))
    store.save_agent("a", AgentStatus(state="online", agent_instance="1"))
    store.save_agent("b", AgentStatus(state="offline", agent_instance="2"))
    found = {agent.agent_id: agent.status for agent in store.agents()}
    assert found == {
        "a": AgentStatus(state="online", agent_instance="1"),
        "b": AgentStatus(state="offline", agent_instance="2"),
    }
    assert all(agent.heard_at > 1.7e9 for agent in store.agents())


def test_a_federation_that_was_never_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; was the coordinator started"):
        Store.open_existing(tmp_path)


def test_readers_do_not_wait_for_the_writer(tmp_path: Path, store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    store.save_agent("a", AgentStatus(state="online", agent_instance="1"))
    reader = Store.open_existing(tmp_path)  # the writer holds its lock until it flushes
    assert loaded(reader) == (0, [0.0, 0.0, 0.0])
    store.commit(1, theta(1, 0, 0), NOTHING, record(0.5))
    assert loaded(reader) == (1, [1.0, 0.0, 0.0])
    reader.close()


# -- damage -----------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert STORE_FILE in text or "state_dir" in text
    return text


@pytest.mark.parametrize("content", [b"rubbish" * 2000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_store_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STORE_FILE).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Store(tmp_path)
    one_line(caught.value)


def test_a_state_dir_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("")
    with pytest.raises(ConfigError) as caught:
        Store(path)
    assert "state" in one_line(caught.value)


def test_another_format_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    store.close()
    with pytest.raises(ConfigError, match="format 99, this version reads 5"):
        Store(tmp_path)


def test_a_database_of_something_else_is_told_in_one_line(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / STORE_FILE)
    other.execute("CREATE TABLE cats (name TEXT)")
    other.close()
    with pytest.raises(ConfigError) as caught:
        Store(tmp_path)
    one_line(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE versions SET theta = x'0102030405'",
        "UPDATE versions SET theta = x'0102030405060708090a0b0c0d'",
        "UPDATE versions SET theta = x'0000803f0000803f0000803e'",  # one bit
        "UPDATE versions SET theta = 'text'",
        "UPDATE versions SET server_state = x'00'",
        "UPDATE versions SET digest = x'00'",
        "UPDATE courses SET course = 5",
        "UPDATE courses SET course = '{\"best\": 5}'",
        "UPDATE courses SET course = 'rubbish'",
        "UPDATE courses SET course = x'ff'",
        "UPDATE courses SET course = x'7b22ff223a317d'",  # {"?":1}, which is no UTF-8
        "DROP TABLE courses",
        "DROP TABLE versions",
    ],
)
def test_damage_inside_is_told_in_one_line_when_it_is_read(tmp_path: Path, sql: str) -> None:
    store = Store(tmp_path)
    store.begin(theta(0, 0, 0), NOTHING)
    store.commit(1, theta(1, 1, 1), NOTHING, record(0.5), (), Course())
    store._db.execute(sql)
    with pytest.raises(ConfigError, match="move the folder away, then put a backup") as caught:
        store.load(3)
    one_line(caught.value)
    store.close()


def test_damaged_pages_are_told_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    for number in range(1, 40):
        store.commit(number, theta(1, 1, 1), NOTHING, record(0.5, round_id=number))
    store.close()
    path = tmp_path / STORE_FILE
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)

    def read() -> None:
        damaged = Store(tmp_path)
        try:
            damaged.load(3)
        finally:
            damaged.close()

    with pytest.raises(ConfigError) as caught:
        read()
    one_line(caught.value)


def test_damaged_agents_are_told_in_one_line(store: Store) -> None:
    store.save_agent("a", AgentStatus(state="online", agent_instance="1"))
    store._db.execute("UPDATE agents SET status = 'rubbish'")
    with pytest.raises(ConfigError) as caught:
        store.agents()
    one_line(caught.value)


def test_a_disk_that_fails_while_it_runs_is_a_store_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(theta(0, 0, 0), NOTHING)
    store._db.execute("PRAGMA max_page_count = 1")  # the disk is full
    with pytest.raises(StoreError, match="full"):
        store.commit(1, theta(1, 1, 1), NOTHING, record(0.5, declined={"x" * 64: "y" * 9000}))
    assert loaded(store) == (0, [0.0, 0.0, 0.0])
    store.close()


# -- status -----------------------------------------------------------------------------------


def test_the_status_document_holds_all_but_the_weights(store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    store.commit(1, theta(1, 1, 1), NOTHING, record(0.5, metrics={"mae": 0.25}))
    store.save_agent("pi-1", AgentStatus(state="online", agent_instance="1", train_examples=10))
    document = status_document(store)
    assert set(document) >= {"federation", "model", "fingerprint", "finished", "versions"}
    assert (document["federation"], document["model"]) == ("f", "house_price")
    assert document["fingerprint"] == PACKAGE.spec.fingerprint
    assert document["finished"] is None
    assert document["versions"] == [0, 1]
    assert [r["metrics"] for r in document["rounds"]] == [{"mae": 0.25}]
    assert document["agents"]["pi-1"]["train_examples"] == 10
    assert json.loads(json.dumps(document))["rounds"] == document["rounds"]
    store.finish("target")
    assert status_document(store)["finished"] == "target"
    store.finish("")
    assert status_document(store)["finished"] is None


def test_the_status_text_shows_rounds_and_agents(store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    for number in range(1, 13):
        changes: dict[str, Any] = {"round_id": number, "version": number}
        store.commit(number, theta(1, 1, 1), NOTHING, record(0.5, **changes))
    store.save_agent(
        "pi-1",
        AgentStatus(state="online", agent_instance="1", unavailable_reason="no_data: no such file"),
    )
    store.finish("rounds")
    config = CoordinatorConfig(federation="f", model="house_price", rounds=12)
    head, earlier, *lines = status_text(store, config).splitlines()
    assert head == "federation f · model house_price · 12 of 12 rounds · finished (rounds)"
    assert earlier == "… 2 earlier rounds: --json shows them"
    assert [line.split(" · ")[0] for line in lines[:10]] == [f"round {n}" for n in range(3, 13)]
    assert "loss 0.5000" in lines[0]
    assert lines[10] == "best: round 1, version 1, loss 0.5000"
    assert lines[11] == "agents: 1 known, 1 online"
    assert "cannot take part: no_data: no such file" in lines[12]


def test_what_agents_say_cannot_command_a_terminal(store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    store.save_agent(
        "pi-1",
        AgentStatus(state="online", agent_instance="1", unavailable_reason="\x1b[2J\nagents: none"),
    )
    config = CoordinatorConfig(federation="f", model="house_price")
    text = status_text(store, config)
    assert text.endswith(r"cannot take part: \x1b[2J\nagents: none")


def test_an_agent_that_nobody_has_heard_of_for_long_is_silent_and_not_online(store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    now = time.time()
    beats = AgentStatus(state="online", agent_instance="1", heartbeat_s=60.0)
    store.save_agent("dead", beats, now - 300)
    store.save_agent(
        "gone", AgentStatus(state="offline", agent_instance="1", heartbeat_s=60.0), now - 300
    )
    store.save_agent("here", beats, now - 200)  # three heartbeats, and the minute between two notes
    store.save_agent("mute", AgentStatus(state="online", agent_instance="1"), now - 300)
    config = CoordinatorConfig(federation="f", model="house_price")
    head, *lines = status_text(store, config).splitlines()[1:]
    assert head == "agents: 4 known, 2 online, 1 silent"
    states = {line.split()[0]: line.split()[1] for line in lines}
    assert states == {"dead": "silent", "gone": "offline", "here": "online", "mute": "online"}
    assert "heard 300 s ago" in lines[0]
    assert status_document(store)["agents"]["dead"]["state"] == "silent"
    store.note_heard({"dead": now - 10})
    assert "4 known, 3 online\n" in status_text(store, config)


def test_the_status_shows_who_was_refused_who_is_silent_and_who_is_in_quarantine(
    store: Store,
) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    store.commit(1, theta(1, 1, 1), NOTHING, record(0.5, round_id=4))
    for name in "abc":
        store.save_agent(name, AgentStatus(state="online", agent_instance="1"))
    store.save_standing("a", Standing(refusals={"late": 1, "norm": 3}))
    store.save_standing("b", Standing(silences={"train": Silence(2, 8)}))
    store.save_standing("c", Standing().quarantined("refused repeatedly, last for norm", 14))
    lines = status_text(store, CoordinatorConfig(federation="f", model="house_price")).splitlines()[
        -3:
    ]
    assert [line.partition("no runtime yet · ")[2] for line in lines] == [
        "refused: 3 norm, 1 late",
        "silent in train 2 times running, asked again from round 8",
        "in quarantine until round 14: refused repeatedly, last for norm",
    ]
    document = status_document(store)["agents"]
    assert document["a"]["standing"]["refusals"] == {"late": 1, "norm": 3}


def test_the_status_shows_the_latest_confusion_matrix(store: Store) -> None:
    store.adopt("f", PACKAGE)
    store.begin(theta(0, 0, 0), NOTHING)
    matrices = {"confusion": [[150.0, 2.0], [0.5, 31.0]], "large": [[0.0] * 13] * 13}
    store.commit(1, theta(1, 1, 1), NOTHING, record(0.5, round_id=1, version=1, matrices=matrices))
    config = CoordinatorConfig(federation="f", model="house_price", rounds=1)
    assert status_text(store, config).splitlines()[2:6] == [
        "confusion: true class by row, predicted by column",
        "          0    1",
        "     0  150    2",
        "     1  0.5   31",
    ]
    assert "large: 13 classes, see `matrices` in the JSON" in status_text(store, config)
    assert status_document(store)["rounds"][0]["matrices"] == matrices


def test_classes_of_a_matrix_have_their_names_where_there_are_as_many() -> None:
    assert matrix_lines("confusion", [[1.0, 0.0], [2.0, 3.0]], ("ok", "worn"))[1:] == [
        "          ok  worn",
        "    ok     1     0",
        "  worn     2     3",
    ]
    assert matrix_lines("confusion", [[1.0, 0.0], [2.0, 3.0]], ("ok",))[1] == "        0  1"


def test_the_status_says_who_does_not_know_the_new_signing_key(store: Store) -> None:
    store.adopt("f", PACKAGE)
    for name, keys in (("a", ("1" * 16, "2" * 16)), ("b", ("1" * 16,)), ("c", ())):
        store.save_agent(name, AgentStatus(state="online", agent_instance="1", keys=keys))
    config = CoordinatorConfig(federation="f", model="house_price")
    store.note_keys(["1" * 16])
    assert "signing key" not in status_text(store, config)
    store.note_keys(["2" * 16, "1" * 16])
    line = "new signing key 2222222222222222: known to 2 of 3 agents, not yet: b"
    assert line in status_text(store, config).splitlines()
    assert status_document(store)["signing_keys"] == ["2" * 16, "1" * 16]


def test_a_schema_with_bytes_that_are_no_text_is_told_in_one_line(tmp_path: Path) -> None:
    Store(tmp_path).close()
    path = tmp_path / STORE_FILE
    data = path.read_bytes()
    assert b"CREATE TABLE versions" in data
    # SQLite quotes the name in its message, which Python then cannot read as text.
    path.write_bytes(data.replace(b"tableversions", b"tablever\xfeions"))
    with pytest.raises(ConfigError, match="is damaged"):
        Store(tmp_path)


def test_the_standing_of_an_agent_is_kept(tmp_path: Path, store: Store) -> None:
    first = Standing(refusals={"norm": 2}, accepted=5)
    store.begin(theta(1, 2, 3), NOTHING)
    store.save_standing("a", first)
    store.save_standing("b", first.quarantined("broken sensor", by_operator=True))
    store.save_standing("a", msgspec.structs.replace(first, accepted=6))
    store.flush()
    with closing(Store(tmp_path)) as again:
        progress = again.load(3)
    assert progress is not None
    assert progress.standings["a"] == Standing(refusals={"norm": 2}, accepted=6)
    assert progress.standings["b"].quarantine_reason == "broken sensor"


# -- what is kept -----------------------------------------------------------------------------


def committed(store: Store, losses: list[float], rule: Rule | None = None) -> Course:
    """Commits a version a round, as a coordinator does."""
    store.begin(theta(0, 0, 0), NOTHING)
    course = Course(rule or Rule())
    for number, loss in enumerate(losses, 1):
        each = record(loss, round_id=number, version=number, metrics={"mae": 1 - loss})
        course = course.after(each)
        store.commit(number, theta(number, 0, 0), NOTHING, each, (), course)
    return course


LOSSES = [0.5, 0.2, 0.4, 0.3, 0.6]


def test_the_best_version_and_its_record_are_kept_however_old(tmp_path: Path) -> None:
    with closing(Store(tmp_path, keep_versions=2, keep_rounds=1)) as store:
        course = committed(store, LOSSES)
        assert store.versions() == [2, 4, 5]
        assert [each.round_id for each in store.history()] == [2, 5]
        progress = store.load(3)
    assert progress is not None
    assert (progress.version, progress.theta.tolist()) == (5, [5, 0, 0])
    assert progress.course == course
    assert progress.course.committed == 5, "the records of some are gone"
    version, best = progress.best
    assert (version, best.tolist()) == (2, [2, 0, 0])


def test_another_metric_looks_for_its_best_version_in_what_is_kept(tmp_path: Path) -> None:
    with closing(Store(tmp_path, keep_rounds=3)) as store:
        committed(store, LOSSES)
        progress = store.load(3, Rule("mae"))
    assert progress is not None
    assert progress.course.best == Best(5, 5, 0.4)
    assert (progress.course.committed, progress.course.without_gain) == (5, 0)


def test_a_start_reads_no_record_of_a_round(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        committed(store, LOSSES)
        store._db.execute("UPDATE rounds SET record = 'rubbish', summary = 'rubbish'")
        progress = store.load(3)
    assert progress is not None
    assert progress.last_round == 5


def test_agents_that_fell_silent_long_ago_are_forgotten_unless_somebody_shut_them_out(
    store: Store,
) -> None:
    status = AgentStatus(state="offline", agent_instance="1")
    for name, heard_at in (("old", 100.0), ("hostile", 100.0), ("new", 300.0)):
        store.save_agent(name, status, heard_at)
        store.save_standing(name, Standing(accepted=1))
    store.save_standing("hostile", Standing().quarantined("hostile", by_operator=True))
    assert store.forget_agents(200.0) == ["old", "hostile"]
    assert [agent.agent_id for agent in store.agents()] == ["new"]
    assert list(store.standings()) == ["hostile", "new"]


def test_the_best_version_is_read_for_a_release(tmp_path: Path) -> None:
    with closing(Store(tmp_path, keep_versions=1)) as store:
        store.adopt("f", PACKAGE)
        committed(store, LOSSES)
        found = read_version(tmp_path, "best", PACKAGE.spec.fingerprint)
        assert (found.version, found.theta.tolist(), found.evaluation["loss"]) == (
            2,
            [2, 0, 0],
            0.2,
        )
        assert read_version(tmp_path, None, PACKAGE.spec.fingerprint).version == 5


def test_where_nothing_was_measured_no_version_is_the_best(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.adopt("f", PACKAGE)
        committed(store, [])
        with pytest.raises(ConfigError, match="none is known to be the best: leave --best out"):
            read_version(tmp_path, "best", PACKAGE.spec.fingerprint)
