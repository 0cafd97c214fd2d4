"""Chunk cache: chunks of blobs that are being fetched, on disk in case of a power cut.

One file a blob, `blobs/<sha256>`: the chunks one after another, each behind its length. Every chunk
carries its own checksum, so a file that was cut off or damaged gives what is left of it.
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path

from broker.protocol import blobs
from fedge.errors import StoreError, WireError

log = logging.getLogger(__name__)

FOLDER = "blobs"
_LENGTH = struct.Struct(">I")


class ChunkStore:
    """Files with the chunks of one agent.

    Args:
        state_dir: of the agent; `blobs/` is made in it when needed.
        max_bytes: of all files together: weights and package at their limit, and their headers.
    """

    def __init__(self, state_dir: Path, max_bytes: int) -> None:
        self._folder = state_dir / FOLDER
        self._max_bytes = max_bytes
        #: Files without a chunk that a power cut or a full disk tore: what is appended can be read.
        self._sound: set[str] = set()

    def keep(self, sha256: str, payload: bytes) -> None:
        """Adds a chunk (not synchronised: a lost one is fetched again).

        Raises:
            StoreError: the disk is full or failed, or the files would be too large.
        """
        if sha256 not in self._sound:
            self.recall(sha256)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(sha256, len(payload))
            with (self._folder / sha256).open("ab") as file:
                file.write(_record(payload))
        except OSError as error:
            self._sound.discard(sha256)
            raise StoreError(f"{self._folder}: {error.strerror}; a chunk is not kept") from error

    def recall(self, sha256: str) -> list[bytes]:
        """Returns the chunks that are whole; the file is left with these."""
        path = self._folder / sha256
        try:
            data = path.read_bytes() if path.stat().st_size <= self._max_bytes else b""
            found = _whole_chunks(data, sha256, path)
            if sum(_LENGTH.size + len(payload) for payload in found) != len(data):
                path.write_bytes(b"".join(map(_record, found)))
        except FileNotFoundError:
            found = []
        except OSError as error:
            log.warning("%s cannot be read or mended: %s", path, error.strerror)
            return []
        self._sound.add(sha256)
        return found

    def forget(self, sha256: str) -> None:
        """Deletes the blob's file."""
        self._sound.discard(sha256)
        try:
            (self._folder / sha256).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be deleted: %s", self._folder / sha256, error.strerror)

    def _make_room(self, sha256: str, payload_bytes: int) -> None:
        """Deletes files of other blobs, the oldest first: leftovers of a power cut."""
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in files)
        for path in files:
            if used + payload_bytes <= self._max_bytes:
                return
            if path.name != sha256:
                used -= path.stat().st_size
                path.unlink()
        if used + payload_bytes > self._max_bytes:
            raise StoreError(f"{self._folder}: {used} bytes, limit {self._max_bytes}")


def _record(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def _whole_chunks(data: bytes, sha256: str, path: Path) -> list[bytes]:
    found, start = [], 0
    while start + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        payload = data[start + _LENGTH.size : start + _LENGTH.size + length]
        start += _LENGTH.size + length
        try:
            if blobs.parse_chunk(payload).ref.sha256 == sha256:
                found.append(payload)
        except WireError as error:
            log.warning("%s: a damaged chunk is ignored: %s", path, error)
    return found
