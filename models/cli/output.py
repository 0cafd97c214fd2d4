"""`--out` of commands that compute for minutes before they write."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedge.errors import ConfigError


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """What fails while writing to `--out`, as a ConfigError that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error


def check_folder(out: Path) -> None:
    """Tries whether a folder can be made, or written into, without leaving a trace.

    Raises:
        ConfigError: it cannot; says why.
    """
    with writing(out):
        _try_folder(out)


def check_file(out: Path) -> None:
    """Tries whether a file can be made, or replaced, without changing it.

    Raises:
        ConfigError: it cannot; says why.
    """
    with writing(out):
        if out.exists():
            out.open("ab").close()
        else:
            _try_folder(out.parent)


def _try_folder(folder: Path) -> None:
    # Of one that is still to be made, the nearest one that is there.
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tempfile.TemporaryFile(dir=there).close()
