"""Update log: the open round's updates, in a file that is only appended to.

SQLite would write an update to its journal, then to its tables, then zeros over it; here its bytes
are written once. When the round is over the file is cut to nothing.

An entry is a prefix (magic, length of the head, length of the frame, CRC-32), a head (JSON: agent
and version) and the frame, then a SHA-256. Both sums begin with the token of the round's phase, so
that what a power cut brings back of an earlier round is no entry. A power cut may also leave the
last entry torn: it was not confirmed, reading ends before it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from fedge.errors import StoreError
from fedge.files import sync_folder, touch_private

log = logging.getLogger(__name__)

LOG_FILE = "open_round.log"
_MAGIC = b"FUP1"
_PREFIX = struct.Struct("<4sIQI")
_DIGEST_BYTES = hashlib.sha256().digest_size
_ERASED_AT_ONCE = 1 << 20
_MOST_IN_MEMORY = 64 << 20


class _Head(msgspec.Struct, frozen=True):
    agent_id: str
    version: int


class UpdateLog:
    """The file. Used from one thread; readers only call `read`.

    Args:
        folder: of the file, which is made with the first update; None: in memory, and beyond
            64 MiB in a temporary file, for simulations of many agents.
        erase: overwrite updates with zeros before their space is given back.
    """

    def __init__(self, folder: Path | None, *, erase: bool = False) -> None:
        self.path = None if folder is None else folder / LOG_FILE
        self._erase = erase
        self._file: IO[bytes] | None = None if folder is not None else io.BytesIO()
        self._token = b""
        self._end = 0
        self._pending: list[bytes] = []

    def close(self) -> None:
        """Releases the file."""
        if self.path is not None and self._file is not None:
            self._file.close()
            self._file = None

    def add(self, agent_id: str, version: int, frame: bytes) -> None:
        """Appends an update; on disk only after `sync`."""
        head = msgspec.json.encode(_Head(agent_id, version))
        prefix = self._prefix(len(head), len(frame), head)
        self._pending += [prefix, head, frame, self._digest(head, frame)]

    def sync(self) -> None:
        """Updates that were added are on disk when this returns.

        Raises:
            StoreError: the disk is full or failed; what was there before is whole.
        """
        if not self._pending:
            return
        try:
            file = self._opened()
            if isinstance(file, io.BytesIO) and self._end > _MOST_IN_MEMORY:
                file = self._out_of_memory(file)
            if file.seek(0, os.SEEK_END) > self._end:
                file.truncate(self._end)  # a torn entry
            file.seek(self._end)
            for part in self._pending:
                _write(file, part)
            self._to_disk(file)
        except OSError as error:
            raise self._failed(error) from error
        self._end += sum(map(len, self._pending))
        self._pending.clear()

    def _out_of_memory(self, content: io.BytesIO) -> IO[bytes]:
        """Moves the updates to a file without a name, which goes with this log."""
        file = self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by the finalizer
        weakref.finalize(self, file.close)
        file.write(content.getbuffer())
        return file

    def lose_unsynced(self) -> None:
        """Drops what was added since the last `sync`, as a power cut does."""
        self._pending.clear()

    def clear(self, token: bytes = b"") -> None:
        """Forgets all updates; those that follow are of the phase of this token."""
        self._token, self._end = token, 0
        self._pending.clear()
        if self._file is not None or (self.path is not None and self.path.exists()):
            self._cut()

    def read(self, token: bytes) -> dict[tuple[str, int], bytes]:
        """Returns the frames of a phase by agent and version, in the order of their arrival.

        A damaged one is left out, with a warning. What is added next follows them.
        """
        self._token, self._end = token, 0
        found: dict[tuple[str, int], bytes] = {}
        if self.path is not None and not self.path.exists():
            return found
        for head, frame, is_whole, end in self._entries():
            self._end = end
            if not is_whole:
                what = f"the update of {head.agent_id}"
                log.warning("%s: %s is damaged and left out", self.path, what)
                continue
            found.pop((head.agent_id, head.version), None)  # sent again: its place is the later one
            found[head.agent_id, head.version] = frame
        return found

    # -- the file -------------------------------------------------------------------------------

    def _entries(self) -> Iterator[tuple[_Head, bytes, bool, int]]:
        """Yields head, frame, whether the frame is as it was written, and where the entry ends."""
        if self.path is None:
            assert self._file is not None, "in memory it is there from the beginning"
            yield from self._parsed(self._file)
            return
        with self.path.open("rb") as file:
            yield from self._parsed(file)

    def _parsed(self, file: IO[bytes]) -> Iterator[tuple[_Head, bytes, bool, int]]:
        end = 0
        file.seek(0, os.SEEK_END)
        size = file.tell()
        while size - end >= _PREFIX.size:
            file.seek(end)
            prefix = file.read(_PREFIX.size)
            _, head_bytes, frame_bytes, _ = _PREFIX.unpack(prefix)
            digest_bytes = 0 if self.path is None else _DIGEST_BYTES
            if size - end < _PREFIX.size + head_bytes + frame_bytes + digest_bytes:
                return
            head = file.read(head_bytes)
            if prefix != self._prefix(head_bytes, frame_bytes, head):
                return
            frame = file.read(frame_bytes)
            is_whole = file.read(digest_bytes) == self._digest(head, frame)
            end = file.tell()
            yield msgspec.json.decode(head, type=_Head), frame, is_whole, end

    def _prefix(self, head_bytes: int, frame_bytes: int, head: bytes) -> bytes:
        check = zlib.crc32(struct.pack("<IQ", head_bytes, frame_bytes), zlib.crc32(self._token))
        return _PREFIX.pack(_MAGIC, head_bytes, frame_bytes, zlib.crc32(head, check))

    def _digest(self, head: bytes, frame: bytes) -> bytes:
        if self.path is None:
            return b""  # nobody else writes to it, and it does not outlive the process
        digest = hashlib.sha256(self._token)
        digest.update(head)
        digest.update(frame)
        return digest.digest()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            assert self.path is not None, "in memory it is there from the beginning"
            touch_private(self.path)  # what updates reveal is not for all
            self._file = self.path.open("r+b", buffering=0)
            sync_folder(self.path.parent)
        return self._file

    def _to_disk(self, file: IO[bytes]) -> None:
        if self.path is not None:
            os.fdatasync(file.fileno())
            if not os.fstat(file.fileno()).st_nlink:
                raise StoreError(
                    f"{self.path} was deleted while the coordinator ran: stop it, put the folder "
                    "back and start again"
                )

    def _cut(self) -> None:
        # Not synchronised: of what a power cut brings back the token is another.
        try:
            file = self._opened()
            if self._erase and (size := file.seek(0, os.SEEK_END)):
                file.seek(0)
                for start in range(0, size, _ERASED_AT_ONCE):
                    _write(file, bytes(min(_ERASED_AT_ONCE, size - start)))
                self._to_disk(file)
            file.truncate(0)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path}: {error.strerror}; what was confirmed is safe: mend the disk and start "
            "again"
        )


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
