"""A watcher of fedge's runs that calls a function after each round."""

from collections.abc import Callable
from typing import Any


class RoundsWatcher:
    """See the module."""

    def __init__(self, on_round: Callable[[Any], None]) -> None:
        self.round = on_round

    def begin(self, participants: object, config: object, broker: str) -> None:
        """Nothing to do."""

    def waiting(self, eligible: int, wanted: int) -> None:
        """Nothing to do."""

    def note(self, text: str) -> None:
        """Nothing to do."""

    def working(self, what: str, done: int, of: int) -> None:
        """Nothing to do."""
