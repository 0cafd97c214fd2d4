"""Payloads that many receivers of one process take: each is decoded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class RecentPayloads:
    """The latest payloads and what they hold, for receivers of one thread.

    What is decoded must not be changed. Memory: so many payloads and their content.

    Args:
        most: payloads that are remembered.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._known: dict[tuple[object, bytes], Any] = {}

    def decoded(self, payload: bytes, decode: Callable[[bytes], T]) -> T:
        """Returns `decode(payload)`, perhaps of an earlier call; what it raises is not kept."""
        key = (decode, payload)
        found: T | None = self._known.get(key)
        if found is None:
            found = decode(payload)
            while len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return found
