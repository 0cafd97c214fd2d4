"""The open round's updates on disk: written once, and whole or not there."""

from __future__ import annotations

import io
import logging
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.storage import update_log
from coordinator.storage.update_log import LOG_FILE, UpdateLog
from fedge.errors import StoreError

TOKEN = b"round 7"
FRAMES = {("a", 6): b"frame of a", ("b", 6): b"", ("a", 5): bytes(range(256)) * 300}


def written(folder: Path | None, *, erase: bool = False) -> UpdateLog:
    log = UpdateLog(folder, erase=erase)
    log.clear(TOKEN)
    for (agent_id, version), frame in FRAMES.items():
        log.add(agent_id, version, frame)
    log.sync()
    return log


def read(folder: Path, token: bytes = TOKEN) -> dict[tuple[str, int], bytes]:
    with closing(UpdateLog(folder)) as log:
        return log.read(token)


def test_updates_come_back_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    written(tmp_path).close()
    assert list(read(tmp_path).items()) == list(FRAMES.items())
    assert (tmp_path / LOG_FILE).stat().st_mode & 0o777 == 0o600


def test_an_update_takes_little_more_than_its_bytes(tmp_path: Path) -> None:
    with closing(UpdateLog(tmp_path)) as log:
        log.clear(TOKEN)
        for number in range(10):
            log.add(f"pi-{number}", 3, bytes(10_000))
        log.sync()
    assert 100_000 < (tmp_path / LOG_FILE).stat().st_size < 101_000


def test_what_was_not_synchronised_may_be_lost(tmp_path: Path) -> None:
    with closing(written(tmp_path)) as log:
        log.add("c", 6, b"later")
        assert read(tmp_path) == FRAMES
        log.lose_unsynced()
        log.sync()
    assert read(tmp_path) == FRAMES


def test_updates_of_another_round_are_none(tmp_path: Path) -> None:
    written(tmp_path).close()
    assert read(tmp_path, b"round 8") == {}


def test_a_round_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    with closing(written(tmp_path)) as log:
        log.clear(b"round 8")
        assert (tmp_path / LOG_FILE).read_bytes() == b""
        log.add("c", 7, b"first of the next round")
        log.sync()
    assert read(tmp_path) == {}
    assert read(tmp_path, b"round 8") == {("c", 7): b"first of the next round"}


@pytest.mark.parametrize("lost", [1, 31, 32, 33, 5000])
def test_a_torn_tail_is_no_update_and_what_follows_takes_its_place(
    tmp_path: Path, lost: int
) -> None:
    written(tmp_path).close()
    content = (tmp_path / LOG_FILE).read_bytes()
    (tmp_path / LOG_FILE).write_bytes(content[:-lost])
    whole = dict(list(FRAMES.items())[:2])
    with closing(UpdateLog(tmp_path)) as log:
        assert log.read(TOKEN) == whole
        log.add("c", 6, b"after the restart")
        log.sync()
    assert read(tmp_path) == {**whole, ("c", 6): b"after the restart"}


def test_every_length_that_a_power_cut_may_leave_gives_whole_updates(tmp_path: Path) -> None:
    with closing(UpdateLog(tmp_path)) as log:
        log.clear(TOKEN)
        log.add("a", 6, b"one")
        log.add("b", 6, b"two")
        log.sync()
    content = (tmp_path / LOG_FILE).read_bytes()
    found = set()
    for length in range(len(content) + 1):
        for tail in (b"", bytes(len(content) - length)):  # cut off, or zeros that were not written
            (tmp_path / LOG_FILE).write_bytes(content[:length] + tail)
            found.add(tuple(read(tmp_path).values()))
    assert found == {(), (b"one",), (b"one", b"two")}


def test_a_flipped_bit_costs_one_update_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path).close()
    content = (tmp_path / LOG_FILE).read_bytes()
    (tmp_path / LOG_FILE).write_bytes(content.replace(b"frame of a", b"frame of b"))
    with caplog.at_level(logging.WARNING):
        assert list(read(tmp_path)) == [("b", 6), ("a", 5)]
    assert "the update of a is damaged and left out" in caplog.text


def test_one_sent_again_replaces_the_first(tmp_path: Path) -> None:
    with closing(written(tmp_path)) as log:
        log.add("a", 6, b"again")
        log.sync()
    assert list(read(tmp_path).items())[-1] == (("a", 6), b"again")
    assert len(read(tmp_path)) == 3


def test_where_asked_for_updates_are_overwritten_before_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path, erase=True)
    path = tmp_path / LOG_FILE
    size = path.stat().st_size
    second = tmp_path / "the same bytes on disk"
    second.hardlink_to(path)
    kept = []
    monkeypatch.setattr(log, "_to_disk", lambda _file: kept.append(second.read_bytes()))
    log.clear()
    assert kept == [bytes(size)]
    assert path.read_bytes() == b""
    log.close()


def test_a_log_that_is_deleted_while_it_is_written_is_noticed(tmp_path: Path) -> None:
    with closing(written(tmp_path)) as log:
        (tmp_path / LOG_FILE).unlink()
        log.add("c", 6, b"x")
        with pytest.raises(StoreError, match="was deleted while"):
            log.sync()


def test_a_disk_that_is_full_keeps_what_was_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(written(tmp_path)) as log:
        log.add("c", 6, bytes(100))

        def fails(_file: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(log, "_to_disk", fails)
        with pytest.raises(StoreError, match=r"No space left on device; what was confirmed is"):
            log.sync()
    assert read(tmp_path).items() >= FRAMES.items()


def test_in_memory_it_behaves_the_same() -> None:
    log = written(None)
    log.add("c", 6, b"lost")
    log.lose_unsynced()
    assert log.read(TOKEN) == FRAMES
    log.clear(b"next")
    assert log.read(b"next") == {}


def test_many_updates_in_memory_move_to_a_file_that_goes_with_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(update_log, "_MOST_IN_MEMORY", 1000)
    log = written(None)  # beyond the limit: the next ones move all
    log.add("c", 6, b"later")
    log.sync()
    file = log._file
    assert not isinstance(file, io.BytesIO)
    assert file is not None
    assert log.read(TOKEN) == {**FRAMES, ("c", 6): b"later"}
    log.clear(b"round 8")
    log.add("d", 7, b"new")
    log.sync()
    assert log.read(b"round 8") == {("d", 7): b"new"}
    del log
    assert file.closed
