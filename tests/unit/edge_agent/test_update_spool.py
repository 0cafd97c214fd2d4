"""What survives a power cut, and what does not disturb anybody when it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.protocol import blobs
from edge_agent.machine.device_state import DeviceState, rounded_residuals
from edge_agent.machine.pending_update import SpooledUpdate
from edge_agent.storage.chunk_cache import ChunkStore
from edge_agent.storage.update_spool import PENDING_FILE, SETTLED_FILE, Spool
from fedge.errors import StoreError
from learning.codecs.feedback import encode_with_feedback
from learning.codecs.registry import CODECS

RESIDUAL = np.array([0.5, -0.25, 1e-9], np.float32)
CONTROL = np.array([1.5, 2.25, -1e-20], np.float32)
PERSONAL = np.array([7.0, 8.5], np.float32)


def state(factor: float = 1.0) -> DeviceState:
    return DeviceState(
        "0123456789abcdef",
        "s1",
        rounded_residuals({"delta": RESIDUAL * np.float32(factor)}),
        "scaffold",
        {"control": CONTROL},
        PERSONAL,
    )


def update(round_id: int = 3, factor: float = 1.0) -> SpooledUpdate:
    return SpooledUpdate("s1", round_id, "train", "b1", 2, 5, 60.0, b"frame" * 9, state(factor))


def assert_same(found: DeviceState | None, expected: DeviceState) -> None:
    assert found is not None
    assert (found.model, found.session, found.algorithm) == (
        expected.model,
        expected.session,
        expected.algorithm,
    )
    ours, theirs = (
        {n: (r.scale, r.halves.tobytes()) for n, r in state.residuals.items()}
        for state in (found, expected)
    )
    assert ours == theirs
    assert {n: v.tobytes() for n, v in found.vectors.items()} == {
        n: v.tobytes() for n, v in expected.vectors.items()
    }
    assert found.personal is not None
    assert expected.personal is not None
    assert found.personal.tobytes() == expected.personal.tobytes()


def spool(folder: Path) -> Spool:
    return Spool(folder, 1 << 20)


def test_a_new_device_remembers_nothing(tmp_path: Path) -> None:
    memory = spool(tmp_path / "state").load()
    assert (memory.pending, memory.settled) == (None, None)
    assert not (tmp_path / "state").exists(), "looking makes no folder"


def test_a_pending_update_comes_back_bit_for_bit(tmp_path: Path) -> None:
    spool(tmp_path).write(update())
    pending = spool(tmp_path).load().pending
    assert pending is not None
    assert_same(pending.state, state())
    assert (pending.session, pending.round_id, pending.phase) == ("s1", 3, "train")
    assert (pending.agent_instance, pending.attempt, pending.version) == ("b1", 2, 5)
    assert (pending.deadline_s, pending.frame) == (60.0, b"frame" * 9)


def test_an_accepted_update_leaves_its_state_and_nothing_to_send(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    kept.resolve(accepted=True)
    memory = spool(tmp_path).load()
    assert memory.pending is None
    assert_same(memory.settled, state())


def test_a_refused_update_leaves_the_state_of_the_one_before(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    kept.resolve(accepted=True)
    kept.write(update(4, 2.0))
    kept.resolve(accepted=False)
    memory = spool(tmp_path).load()
    assert memory.pending is None
    assert_same(memory.settled, state())


def test_a_round_writes_one_file_and_its_receipt_none(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.write(update())
    written = (tmp_path / PENDING_FILE).read_bytes()
    kept.resolve(accepted=True)
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


def test_a_state_that_was_forgotten_does_not_come_back(tmp_path: Path) -> None:
    kept = spool(tmp_path)
    kept.forget_state()
    kept.write(update())
    kept.resolve(accepted=True)
    kept.forget_state()
    assert spool(tmp_path).load().settled is None


def test_a_damaged_header_is_noticed_too(tmp_path: Path) -> None:
    spool(tmp_path).write(update())
    path = tmp_path / PENDING_FILE
    path.write_bytes(path.read_bytes().replace(b'"scale":0.5', b'"scale":0.6'))
    assert spool(tmp_path).load().pending is None


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_round_writes_little_more_than_update_residual_and_algorithm_state(
    tmp_path: Path, algorithm: str
) -> None:
    rng = np.random.default_rng(1)
    size, codec = 10_000, CODECS.make("int8")
    vectors = {name: rng.standard_normal(size).astype(np.float32) for name in ("delta", "control")}
    if algorithm == "fedavg":
        del vectors["control"]
    encoded = {name: encode_with_feedback(codec, v, None, 0, rng) for name, v in vectors.items()}
    frame = b"".join(part.payload for part in encoded.values())
    own = DeviceState(
        "0123456789abcdef",
        "s1",
        rounded_residuals({"delta": encoded["delta"].residual}),
        algorithm,
        {name: vector for name, vector in vectors.items() if name != "delta"},
    )
    spool(tmp_path).write(SpooledUpdate("s1", 3, "train", "b1", 2, 5, 60.0, frame, own))
    needed = len(frame) + 2 * size + (4 * size if algorithm == "scaffold" else 0)
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert needed < written <= 1.2 * needed
    assert written - needed < 1000


def test_resolving_what_was_never_written_is_no_error(tmp_path: Path) -> None:
    spool(tmp_path).resolve(accepted=True)
    spool(tmp_path).resolve(accepted=False)


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
