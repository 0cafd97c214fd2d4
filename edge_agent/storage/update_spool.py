"""What must survive a power cut: the update without a receipt, and what rounding lost.

Two files in the agent's state folder. `pending.bin` is written once a round, before the update is
published; the receipt renames it to `settled.bin`, whose residual the next update makes up for, or
deletes it when the update does not count. Writing an update once spares SD cards.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import msgspec
import numpy as np

from broker.protocol.messages import Count, Fingerprint, Id, RoundId, Sha256
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from fedge.errors import StoreError, WireError
from fedge.files import sync_folder, touch_private
from learning.vector import frames

log = logging.getLogger(__name__)

PENDING_FILE = "pending.bin"
SETTLED_FILE = "settled.bin"
_DAMAGED = ".damaged"


class _Header(msgspec.Struct, frozen=True):
    session: Id
    round_id: RoundId
    boot: Id
    attempt: Count
    fingerprint: Fingerprint
    deadline_s: float
    frame_bytes: Count
    sha256: Sha256


class Spool:
    """The two files of one agent.

    Args:
        folder: made when absent.
        max_bytes: a larger update is refused, and a larger file is no spool.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def load(self) -> AgentMemory:
        """What there is; a damaged file is set aside, with a warning that says what was lost."""
        settled = self._read(SETTLED_FILE, "the residual of earlier rounds")
        return AgentMemory(
            pending=self._read(PENDING_FILE, "an update without a receipt"),
            residual=None if settled is None else settled.residual,
            fingerprint="" if settled is None else settled.fingerprint,
        )

    def write(self, update: SpooledUpdate) -> None:
        """The pending update, whole or not at all, on the disk when this returns.

        Raises:
            StoreError: the disk is full or failed, or the update is too large.
        """
        body = update.frame + update.residual.astype("<f4").tobytes()
        header = _Header(
            update.session,
            update.round_id,
            update.boot,
            update.attempt,
            update.fingerprint,
            update.deadline_s,
            len(update.frame),
            hashlib.sha256(body).hexdigest(),
        )
        data = frames.pack(header, body)
        if len(data) > self._max_bytes:
            raise StoreError(f"update of {len(data)} bytes, spool limit {self._max_bytes}")
        self._write_whole(PENDING_FILE, data)

    def settle(self, *, accepted: bool) -> None:
        """The pending update is done with: its residual counts when it was accepted."""
        pending = self._folder / PENDING_FILE
        try:
            if accepted:
                pending.replace(self._folder / SETTLED_FILE)
            else:
                pending.unlink(missing_ok=True)
        except FileNotFoundError:
            log.debug("nothing pending in the spool")  # it could not be written
        except OSError as error:
            raise StoreError(f"{pending}: {error.strerror}") from error

    def forget_residual(self) -> None:
        """The settled update is of no more use."""
        path = self._folder / SETTLED_FILE
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def _write_whole(self, name: str, data: bytes) -> None:
        path, partial = self._folder / name, self._folder / (name + ".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            touch_private(partial)  # an update can reveal something of the data behind it
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(self._folder)  # the rename itself is only safe once it is on disk
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise StoreError(f"{path}: {error.strerror}; the update is not kept on disk") from error

    def _read(self, name: str, what: str) -> SpooledUpdate | None:
        path = self._folder / name
        try:
            if path.stat().st_size > self._max_bytes:
                raise WireError(f"{path.stat().st_size} bytes, limit {self._max_bytes}")
            return _decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, WireError) as error:
            log.warning("%s is damaged and set aside, %s is lost: %s", path, what, error)
            _set_aside(path)
            return None


def _decode(data: bytes) -> SpooledUpdate:
    header, body = frames.unpack(data, _Header, "spool")
    rest = body[header.frame_bytes :]
    if hashlib.sha256(body).hexdigest() != header.sha256 or len(rest) % 4:
        raise WireError("its checksum is wrong")
    residual = np.frombuffer(rest, "<f4").astype(np.float32)
    if not np.isfinite(residual).all():
        raise WireError("its residual is not finite")
    residual.setflags(write=False)
    return SpooledUpdate(
        header.session,
        header.round_id,
        header.boot,
        header.attempt,
        header.fingerprint,
        header.deadline_s,
        bytes(body[: header.frame_bytes]),
        residual,
    )


def _set_aside(path: Path) -> None:
    # One damaged file is kept for whoever looks into it; the next one replaces it.
    try:
        path.replace(path.with_name(path.name + _DAMAGED))
    except OSError as error:
        log.warning("%s cannot be moved: %s", path, error)
