"""Checks of `--out`, for commands that compute for minutes before they write."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedge.errors import ConfigError


@contextlib.contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Turns an OSError in the block into a ConfigError that names `--out`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error


def check_folder(out: Path) -> None:
    """Checks that a folder can be created, or written into; leaves no trace.

    Raises:
        ConfigError: the folder cannot be created or written into; says why.
    """
    with output_errors(out):
        _try_folder(out)


def check_file(out: Path) -> None:
    """Checks that a file can be created or replaced; changes nothing.

    Raises:
        ConfigError: the file cannot be created or replaced; says why.
    """
    with output_errors(out):
        if out.exists():
            out.open("ab").close()
        else:
            _try_folder(out.parent)


def _try_folder(folder: Path) -> None:
    # The nearest parent that exists.
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    tempfile.TemporaryFile(dir=existing).close()
