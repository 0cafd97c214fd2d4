"""Backups of a federation, and what a copied file is worth."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from broker.protocol.messages import AgentStatus
from coordinator.config import CoordinatorConfig
from coordinator.operate import ROLE, restore
from coordinator.storage.backup import back_up
from coordinator.storage.store import Store
from fedge.errors import ConfigError
from fedge.files import claimed
from learning.algorithms.algorithm import ServerState
from models.package.stored_versions import STORE_FILE
from models.zoo import load_zoo
from tests.unit.coordinator.test_stopping import record
from tests.unit.coordinator.test_store import NOTHING, theta

PACKAGE = load_zoo("house_price")
CONFIG = CoordinatorConfig(federation="f", model="house_price")


def fill(store: Store, state: ServerState = NOTHING) -> None:
    store.adopt("f", PACKAGE)
    store.session("first")
    store.begin(theta(0, 0, 0), state)
    for number in (1, 2, 3):
        each = record(0.5, round_id=number, version=number)
        store.commit(number, theta(number, 0, 0), state, each)
    store.save_agent("a", AgentStatus(state="online", agent_instance="1"))
    store.flush()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "state")) as store:
        fill(store)
        yield store


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    back_up(store.path.parent, tmp_path / "backup")
    return tmp_path / "backup"


def test_a_backup_of_a_store_at_work_holds_what_was_confirmed(store: Store, tmp_path: Path) -> None:
    store.save_agent("b", AgentStatus(state="online", agent_instance="1"))  # not flushed
    size = back_up(store.path.parent, tmp_path / "backup")
    assert size == (tmp_path / "backup").stat().st_size
    store.commit(4, theta(4, 0, 0), NOTHING, record(0.5, round_id=4, version=4))
    restore(CONFIG, tmp_path / "again", PACKAGE, tmp_path / "backup")
    with closing(Store(tmp_path / "again")) as again:
        progress = again.load(3)
        assert progress is not None
        assert (progress.version, progress.theta.tolist()) == (3, [3, 0, 0])
        assert [agent.agent_id for agent in again.agents()] == ["a"]
        assert len(again.rounds()) == 3


def test_a_backup_is_one_file_for_its_owner(file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes()[18] == 1, "no write-ahead log belongs to it"
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == ["backup"]


def test_the_federation_goes_on_in_a_new_session(file: Path, tmp_path: Path) -> None:
    lines = restore(CONFIG, tmp_path / "again", PACKAGE, file)
    assert lines[0].startswith(f"restored to {tmp_path / 'again'}: version 3, 3 rounds, as of 2")
    with closing(Store(tmp_path / "again")) as again:
        assert again.session("x") not in ("first", "x"), "updates of rounds since are foreign"
        assert again.meta("backup_at") is None, "a copy of its file is no backup"


def test_where_devices_hold_state_the_server_s_half_begins_anew_with_them(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "state")) as store:
        fill(store, ServerState({"control": theta(1, 2, 3)}))
        back_up(store.path.parent, tmp_path / "backup")
    config = CoordinatorConfig(federation="f", model="house_price", algorithm="scaffold")
    restore(config, tmp_path / "again", PACKAGE, tmp_path / "backup")
    with closing(Store(tmp_path / "again")) as again:
        progress = again.load(3)
    assert progress is not None
    assert (progress.version, progress.theta.tolist()) == (4, [3, 0, 0])
    assert progress.state.vectors["control"].tolist() == [0, 0, 0]


def test_only_an_empty_folder_takes_a_backup(store: Store, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a store: name an empty state_dir"):
        restore(CONFIG, store.path.parent, PACKAGE, file)
    with (
        claimed(tmp_path / "busy", ROLE),
        pytest.raises(ConfigError, match="is in use by process"),
    ):
        restore(CONFIG, tmp_path / "busy", PACKAGE, file)


def test_a_folder_with_other_files_takes_no_backup(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    (folder / "photos").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (folder / name).touch()
    with pytest.raises(ConfigError, match=r"is not empty \(1.jpg, 2.jpg, 3.jpg and 1 more\): name"):
        restore(CONFIG, folder, PACKAGE, file)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == [
        "1.jpg",
        "2.jpg",
        "3.jpg",
        "photos",
    ]


def test_what_a_deleted_store_left_behind_is_no_obstacle(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    folder.mkdir()
    remains = (f"{STORE_FILE}-wal", f"{STORE_FILE}-shm")
    for name in ("README.txt", "latest_round.txt", "open_round.log", *remains):
        (folder / name).write_text("old")
    assert "version 3" in restore(CONFIG, folder, PACKAGE, file)[0]


def test_a_backup_does_not_replace_a_file(store: Store, file: Path) -> None:
    with pytest.raises(ConfigError, match="exists: name a file that does not"):
        back_up(store.path.parent, file)
    with pytest.raises(ConfigError, match="nowhere"):
        back_up(store.path.parent, file.parent / "nowhere" / "backup")


def test_what_is_no_backup_is_refused_and_nothing_is_left(
    store: Store, file: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    content = bytearray(file.read_bytes())
    content[4096:8192] = b"\xa5" * 4096
    damaged.write_bytes(content)
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"rubbish" * 1000)
    again = tmp_path / "again"
    for path, words in (
        (tmp_path / "none", "no such file"),
        (rubbish, "is no backup of a coordinator"),
        (damaged, "damaged|is no backup"),
        (store.path, "was not made by `fedge coordinator backup`|is no backup"),
    ):
        with pytest.raises(ConfigError, match=words):
            restore(CONFIG, again, PACKAGE, path)
        assert not list(again.glob("*sqlite*"))
        assert not list(again.glob(".*partial"))


def test_a_backup_of_another_federation_is_refused_and_not_left_behind(
    file: Path, tmp_path: Path
) -> None:
    other = CoordinatorConfig(federation="g", model="house_price")
    with pytest.raises(ConfigError, match="holds federation 'f', the configuration says 'g'"):
        restore(other, tmp_path / "again", PACKAGE, file)
    restore(CONFIG, tmp_path / "again", PACKAGE, file)


def test_a_copy_without_its_log_is_told_to_be_empty_where_it_is(tmp_path: Path) -> None:
    whole = sqlite3.connect(tmp_path / "whole.sqlite")
    whole.execute("PRAGMA journal_mode = WAL")
    whole.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    shutil.copy(tmp_path / "whole.sqlite", tmp_path / STORE_FILE)
    whole.close()
    with pytest.raises(ConfigError, match=r"is empty.*copy with `fedge coordinator backup`"):
        Store.open_existing(tmp_path)


def test_a_copy_of_the_file_alone_is_old_but_not_empty_and_warned_of(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(store.path, copy)
    with closing(Store.open_existing(copy)) as lone:
        progress = lone.load(3)
    assert progress is not None
    assert progress.version == 0
    assert np.count_nonzero(progress.theta) == 0
    (line,) = caplog.messages
    assert line.startswith(f"{copy / STORE_FILE} ends with round 0, version 0, and there is no")


def test_an_old_copy_in_the_place_of_the_store_is_warned_of(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(store.path.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("*-wal"))
    with closing(Store.open_existing(tmp_path / "copy")):
        pass
    (line,) = caplog.messages
    assert "ends with round 0, version 0, but round 3, version 3 was reached here" in line


def test_a_whole_store_is_not_warned_of(
    store: Store, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store.path.parent
    with closing(Store.open_existing(folder)):
        pass  # beside the one at work
    shutil.copytree(folder, tmp_path / "killed")
    restore(CONFIG, tmp_path / "again", PACKAGE, file)
    store.roll_back(1, 3, lambda _, state: state)
    store.close()
    (folder / "latest_round.txt").write_text("")  # torn by a power cut
    for each in (folder, tmp_path / "killed", tmp_path / "again"):
        with closing(Store.open_existing(each)):
            pass
    assert not caplog.messages
    assert (tmp_path / "again" / "latest_round.txt").read_text() == "round 3, version 3\n"


def test_the_folder_says_how_to_copy_it(store: Store) -> None:
    note = (store.path.parent / "README.txt").read_text()
    assert "fedge coordinator backup FILE" in note
    assert "federation.sqlite-wal" in note
