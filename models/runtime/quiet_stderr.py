"""TensorFlow and the interpreters without what they say about themselves."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hides what native code writes to file descriptor 2; Python errors still propagate.

    TensorFlow's libraries announce CPU features and conversion passes there, whatever Python's
    logging says. Affects the whole process while it lasts.
    """
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except OSError:  # a service started without stderr has nothing to hide
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
