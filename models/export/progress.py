"""Steps of an export or a release, told to whoever waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Tell = Callable[[str], object]

_tell: ContextVar[Tell | None] = ContextVar("tell", default=None)


def step(text: str) -> None:
    """Tells what begins now, in a few words (`tracing gradient`)."""
    tell = _tell.get()
    if tell is not None:
        tell(text)


@contextlib.contextmanager
def progress_to(tell: Tell) -> Iterator[None]:
    """Has each step told to `tell` until the block ends, also where a user's function exports."""
    token = _tell.set(tell)
    try:
        yield
    finally:
        _tell.reset(token)
