"""Files of a device's data: one, or those that a pattern names; and how far reading has come."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedge.errors import DataError
from fedge.yaml_config import located

log = logging.getLogger(__name__)

#: So often reading says how far it is.
_EVERY_S = 5.0
_PATTERN = frozenset("*?[")


def is_pattern(path: str) -> bool:
    """Whether a path names files by a pattern: `records/*.csv`."""
    return not _PATTERN.isdisjoint(path)


def data_files(path: str, base: Path) -> tuple[Path, list[Path]]:
    """Returns a path of a configuration for messages, and the files it names, ordered by name.

    Args:
        path: of a file, or a pattern.
        base: folder that it is relative to.

    Raises:
        DataError: a pattern that matches no file.
    """
    whole = located(path, base)
    if not is_pattern(path) or whole.exists():
        return whole, [whole]
    top = whole
    parts: list[str] = []
    while is_pattern(str(top)):
        parts.insert(0, top.name)
        top = top.parent
    try:
        found = sorted(file for file in top.glob("/".join(parts)) if file.is_file())
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{whole}: cannot be read: {error}") from error
    if not found:
        hint = "" if top.is_dir() else f"; there is no folder {top}"
        raise DataError(f"{whole}: no file has a name like this{hint}")
    return whole, found


class Progress:
    """Log lines that say how far reading has come, every few seconds.

    Args:
        whole: all files, for messages.
        paths: files in their order.
        clock: in seconds.
    """

    def __init__(
        self, whole: Path, paths: Sequence[Path], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._whole = whole
        self._clock = clock
        self._told_s = clock()
        self._before: dict[Path, int] = {}
        self._total = 0
        for path in paths:
            self._before[path] = self._total
            with contextlib.suppress(OSError):  # the reader says what is wrong with it
                self._total += path.stat().st_size

    def read(self, path: Path, position: int | None, rows: int) -> None:
        """Says how far it is, if it is time to.

        Args:
            path: that is being read.
            position: in it, in bytes; None: nobody knows.
            rows: read in all.
        """
        now_s = self._clock()
        if now_s - self._told_s < _EVERY_S:
            return
        self._told_s = now_s
        part = ""
        if position is not None:
            done = (self._before[path] + position) / max(1, self._total)
            part = f"{min(100, round(100 * done))} % read, "
        log.info(
            "%s: %s%s rows", self._whole, part, f"{rows:,}",
            extra={"event": "reading", "rows": rows},
        )  # fmt: skip
