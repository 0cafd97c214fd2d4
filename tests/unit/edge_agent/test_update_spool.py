"""What survives a power cut, and what does not disturb anybody when it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.protocol import blobs
from edge_agent.machine.pending_update import SpooledUpdate
from edge_agent.storage.chunk_cache import ChunkStore
from edge_agent.storage.update_spool import PENDING_FILE, SETTLED_FILE, Spool
from fedge.errors import StoreError

RESIDUAL = np.array([0.5, -0.25, 1e-9], np.float32)


def update(round_id: int = 3, residual: np.ndarray = RESIDUAL) -> SpooledUpdate:  # type: ignore[type-arg]
    return SpooledUpdate("s1", round_id, "b1", 2, "0123456789abcdef", 60.0, b"frame" * 9, residual)


def spool(folder: Path) -> Spool:
    return Spool(folder, 1 << 20)


def test_a_new_device_remembers_nothing(tmp_path: Path) -> None:
    memory = spool(tmp_path / "state").load()
    assert (memory.pending, memory.residual, memory.fingerprint) == (None, None, "")
    assert not (tmp_path / "state").exists(), "looking makes no folder"


def test_a_pending_update_comes_back_bit_for_bit(tmp_path: Path) -> None:
    spool(tmp_path).write(update())
    pending = spool(tmp_path).load().pending
    assert pending is not None
    np.testing.assert_array_equal(pending.residual, RESIDUAL)
    assert (pending.session, pending.round_id, pending.boot, pending.attempt) == ("s1", 3, "b1", 2)
    assert (pending.fingerprint, pending.deadline_s) == ("0123456789abcdef", 60.0)
    assert pending.frame == b"frame" * 9


def test_an_accepted_update_leaves_its_residual_and_nothing_to_send(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    kept.settle(accepted=True)
    memory = spool(tmp_path).load()
    assert memory.pending is None
    assert memory.residual is not None
    np.testing.assert_array_equal(memory.residual, RESIDUAL)
    assert memory.fingerprint == "0123456789abcdef"


def test_a_refused_update_leaves_the_residual_of_the_one_before(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    kept.settle(accepted=True)
    kept.write(update(4, RESIDUAL * 2))
    kept.settle(accepted=False)
    memory = spool(tmp_path).load()
    assert memory.pending is None
    assert memory.residual is not None
    np.testing.assert_array_equal(memory.residual, RESIDUAL)


def test_a_round_writes_one_file_and_its_receipt_none(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    written = (tmp_path / PENDING_FILE).read_bytes()
    kept.settle(accepted=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [SETTLED_FILE]
    assert (tmp_path / SETTLED_FILE).read_bytes() == written


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_set_aside_with_a_word_of_what_was_lost(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spool(tmp_path).write(update())
    path = tmp_path / PENDING_FILE
    data = path.read_bytes()
    damaged = {
        "cut": data[:-5],
        "flip": data[:-5] + bytes([data[-5] ^ 4]) + data[-4:],
        "empty": b"",
        "other": b"something else entirely" * 10,
    }[damage]
    path.write_bytes(damaged)
    assert spool(tmp_path).load().pending is None
    assert "an update without a receipt is lost" in caplog.text
    assert not path.exists()
    assert (tmp_path / (PENDING_FILE + ".damaged")).read_bytes() == damaged
    assert spool(tmp_path).load().pending is None, "and it is told once"
    assert caplog.text.count("is damaged") == 1


def test_a_crash_while_writing_leaves_the_file_of_before(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    (tmp_path / (PENDING_FILE + ".partial")).write_bytes(b"half of the next")
    pending = spool(tmp_path).load().pending
    assert pending is not None
    assert pending.round_id == 3


def test_an_update_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It can reveal something of the data behind it."""
    spool(tmp_path).write(update())
    assert (tmp_path / PENDING_FILE).stat().st_mode & 0o077 == 0


def test_an_update_over_the_limit_and_a_folder_that_cannot_be_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="spool limit 100"):
        Spool(tmp_path, 100).write(update())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="not kept on disk"):
        spool(tmp_path / "file" / "state").write(update())


def test_a_residual_that_was_forgotten_does_not_come_back(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.forget_residual()
    kept.write(update())
    kept.settle(accepted=True)
    kept.forget_residual()
    assert spool(tmp_path).load().residual is None


def test_settling_what_was_never_written_is_no_error(tmp_path: Path) -> None:
    spool(tmp_path).settle(accepted=True)
    spool(tmp_path).settle(accepted=False)


def chunks_of(blob: bytes) -> tuple[str, list[bytes]]:
    ref, payloads = blobs.split(blob, 1024)
    return ref.sha256, payloads


def test_kept_chunks_come_back_also_after_a_cut_in_the_middle_of_a_write(tmp_path: Path) -> None:
    sha256, payloads = chunks_of(bytes(4000))
    store = ChunkStore(tmp_path, 1 << 20)
    for payload in payloads[:3]:
        store.keep(sha256, payload)
    path = tmp_path / "blobs" / sha256
    path.write_bytes(path.read_bytes()[:-10])
    assert ChunkStore(tmp_path, 1 << 20).recall(sha256) == payloads[:2]


@pytest.mark.parametrize("recalled", [True, False])
def test_chunks_that_come_after_a_torn_one_are_not_lost_with_it(
    tmp_path: Path, recalled: bool
) -> None:
    sha256, payloads = chunks_of(bytes(4000))
    store = ChunkStore(tmp_path, 1 << 20)
    store.keep(sha256, payloads[0])
    store.keep(sha256, payloads[1])
    path = tmp_path / "blobs" / sha256
    path.write_bytes(path.read_bytes()[:-10])
    again = ChunkStore(tmp_path, 1 << 20)
    if recalled:
        assert again.recall(sha256) == payloads[:1]
    again.keep(sha256, payloads[2])  # it was on its way at the power cut, or is fetched now
    again.keep(sha256, payloads[3])
    assert ChunkStore(tmp_path, 1 << 20).recall(sha256) == [payloads[n] for n in (0, 2, 3)]


def test_flipped_bits_cost_one_chunk_and_foreign_chunks_are_left_out(tmp_path: Path) -> None:
    sha256, payloads = chunks_of(bytes(4000))
    _, foreign = chunks_of(b"x" * 4000)
    store = ChunkStore(tmp_path, 1 << 20)
    for payload in (payloads[0], foreign[0], payloads[1]):
        store.keep(sha256, payload)
    path = tmp_path / "blobs" / sha256
    data = bytearray(path.read_bytes())
    data[len(payloads[0]) // 2] ^= 1
    path.write_bytes(data)
    assert store.recall(sha256) == [payloads[1]]


def test_the_disk_is_bounded_and_forgetting_frees_it(tmp_path: Path) -> None:
    sha256, payloads = chunks_of(bytes(4000))
    store = ChunkStore(tmp_path, 2500)
    store.keep(sha256, payloads[0])
    store.keep(sha256, payloads[1])
    with pytest.raises(StoreError, match="limit 2500"):
        store.keep(sha256, payloads[2])
    store.forget(sha256)
    store.forget(sha256)
    assert store.recall(sha256) == []
    store.keep(sha256, payloads[2])


def test_files_left_from_before_make_room_for_what_is_fetched_now(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 4000)
    (old, old_payloads), (new, new_payloads) = (chunks_of(b * 3000) for b in (b"o", b"n"))
    for payload in old_payloads[:3]:
        store.keep(old, payload)
    for payload in new_payloads[:3]:
        store.keep(new, payload)
    assert store.recall(old) == []
    assert store.recall(new) == new_payloads
