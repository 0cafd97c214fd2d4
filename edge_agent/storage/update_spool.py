"""Update spool: the pending update and the device's state on disk, safe from power cuts.

Two files in the agent's state folder. `pending.bin` is written once a round, before the update is
published: the update's frame and the state that the device has once the update counts. The receipt
renames it to `settled.bin`, whose state the next training begins from, or deletes it. Writing once
a round spares SD cards: residuals are stored as float16, the rest of the state as float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from broker.protocol.messages import Count, Id, Name, RoundId, Sha256, Text
from edge_agent.machine.device_state import DeviceState, Residual
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from fedge.errors import StoreError, WireError
from fedge.files import sync_folder, touch_private
from learning.vector import frames
from learning.vector.parameters import F32

log = logging.getLogger(__name__)

PENDING_FILE = "pending.bin"
SETTLED_FILE = "settled.bin"
_DAMAGED = ".damaged"
_FORMAT = 2
_NO_CHECKSUM = "0" * 64


class _Vector(msgspec.Struct, frozen=True, omit_defaults=True):
    """One vector of the state: float16 parts of a scale for residuals, else float32."""

    kind: Literal["residual", "algorithm", "personal"]
    name: Name
    size: Count
    scale: Annotated[float, Meta(ge=0, le=3.5e38)] = 0.0

    @property
    def bytes(self) -> int:
        return self.size * (2 if self.kind == "residual" else 4)


class _Header(msgspec.Struct, frozen=True):
    session: Id
    round_id: RoundId
    phase: Text
    agent_instance: Id
    attempt: Count
    version: Count
    deadline_s: float
    frame_bytes: Count
    model: Text
    algorithm: Text
    vectors: Annotated[tuple[_Vector, ...], Meta(max_length=200)]
    sha256: Sha256
    format: int = _FORMAT


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
        """Returns what is stored; sets a damaged file aside and warns what was lost."""
        settled = self._read(SETTLED_FILE, "the device's state of earlier rounds")
        return AgentMemory(
            pending=self._read(PENDING_FILE, "an update without a receipt"),
            settled=None if settled is None else settled.state,
        )

    def write(self, update: SpooledUpdate) -> None:
        """Writes the pending update, whole or not at all; it is on the disk on return.

        Raises:
            StoreError: the disk is full or failed, or the update is too large.
        """
        data = _encode(update)
        if len(data) > self._max_bytes:
            raise StoreError(f"update of {len(data)} bytes, spool limit {self._max_bytes}")
        self._write_whole(PENDING_FILE, data)

    def resolve(self, *, accepted: bool) -> None:
        """Makes the pending update's state the settled one, or deletes both.

        Raises:
            StoreError: the disk failed.
        """
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

    def forget_state(self) -> None:
        """Deletes the settled state.

        Raises:
            StoreError: the disk failed.
        """
        path = self._folder / SETTLED_FILE
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def _write_whole(self, name: str, data: bytes) -> None:
        path, partial = self._folder / name, self._folder / (name + ".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            touch_private(partial)  # update and state can reveal something of the data behind them
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


def _encode(update: SpooledUpdate) -> bytes:
    vectors, parts = [], [update.frame]
    for vector, data in _state_parts(update.state):
        vectors.append(vector)
        parts.append(data)
    body = b"".join(parts)
    header = _Header(
        session=update.session,
        round_id=update.round_id,
        phase=update.phase,
        agent_instance=update.agent_instance,
        attempt=update.attempt,
        version=update.version,
        deadline_s=update.deadline_s,
        frame_bytes=len(update.frame),
        model=update.state.model,
        algorithm=update.state.algorithm,
        vectors=tuple(vectors),
        sha256=_NO_CHECKSUM,
    )
    checksum = _checksum(header, body)
    return frames.pack(msgspec.structs.replace(header, sha256=checksum), body)


def _checksum(header: _Header, body: bytes | memoryview) -> str:
    """SHA-256 of header and body, whatever checksum the header holds."""
    text = msgspec.json.encode(msgspec.structs.replace(header, sha256=_NO_CHECKSUM))
    digest = hashlib.sha256(text)
    digest.update(body)
    return digest.hexdigest()


def _state_parts(state: DeviceState) -> Iterator[tuple[_Vector, bytes]]:
    for name, residual in state.residuals.items():
        described = _Vector("residual", name, residual.size, residual.scale)
        yield described, residual.halves.astype("<f2").tobytes()
    for name, vector in state.vectors.items():
        yield _Vector("algorithm", name, vector.size), vector.astype("<f4").tobytes()
    if state.personal is not None:
        yield (
            _Vector("personal", "personal", state.personal.size),
            state.personal.astype("<f4").tobytes(),
        )


def _decode(data: bytes) -> SpooledUpdate:
    """Raises WireError: damaged, or written by another version."""
    header, body = frames.unpack(data, _Header, "spool")
    expected = header.frame_bytes + sum(vector.bytes for vector in header.vectors)
    if header.format != _FORMAT or body.nbytes != expected:
        raise WireError(f"{body.nbytes} bytes behind the header, it says {expected}")
    if _checksum(header, body) != header.sha256:
        raise WireError("its checksum is wrong")
    return SpooledUpdate(
        session=header.session,
        round_id=header.round_id,
        phase=header.phase,
        agent_instance=header.agent_instance,
        attempt=header.attempt,
        version=header.version,
        deadline_s=header.deadline_s,
        frame=bytes(body[: header.frame_bytes]),
        state=_decode_state(header, body[header.frame_bytes :]),
    )


def _decode_state(header: _Header, body: memoryview) -> DeviceState:
    found: dict[str, dict[str, F32]] = {"algorithm": {}, "personal": {}}
    residuals: dict[str, Residual] = {}
    start = 0
    for vector in header.vectors:
        part = body[start : start + vector.bytes]
        start += vector.bytes
        if vector.kind == "residual":
            halves = np.frombuffer(part, "<f2").astype(np.float16)
            residual = residuals[vector.name] = Residual(vector.scale, halves)
            with np.errstate(over="ignore", invalid="ignore"):  # named below
                values = residual.vector
        else:
            values = found[vector.kind][vector.name] = np.frombuffer(part, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise WireError(f"its {vector.kind} vector {vector.name!r} is not finite")
    return DeviceState(
        header.model,
        header.session,
        residuals,
        header.algorithm,
        found["algorithm"],
        found["personal"].get("personal"),
    )


def _set_aside(path: Path) -> None:
    # One damaged file is kept for whoever looks into it; the next one replaces it.
    try:
        path.replace(path.with_name(path.name + _DAMAGED))
    except OSError as error:
        log.warning("%s cannot be moved: %s", path, error)
