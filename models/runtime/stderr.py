"""Suppresses messages of native code on standard error."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def suppress_stderr() -> Iterator[None]:
    """Discards output to file descriptor 2; Python errors still propagate.

    TensorFlow's libraries print CPU features and conversion passes there, whatever Python's
    logging level is. Affects the whole process until the block ends.
    """
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except OSError:  # a service started without stderr
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def stderr_without(unwanted: re.Pattern[bytes]) -> Iterator[None]:
    """Holds back output to file descriptor 2, then writes its lines that are not `unwanted`.

    Affects the whole process until the block ends: one thread at a time may use it.
    """
    try:
        sys.stderr.flush()
        saved = os.dup(2)
        sink = tempfile.TemporaryFile()  # noqa: SIM115  closed below
    except (AttributeError, OSError):  # no stderr, or nowhere to write
        yield
        return
    with sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            for line in sink:
                if not unwanted.fullmatch(line):
                    os.write(2, line)
