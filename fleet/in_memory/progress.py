"""Progress of a simulation in a notebook, on a terminal or in a file, in few characters."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import msgspec

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fedge.limits import printable
from fleet.experiments.results import flat_round
from fleet.participants import Participants

#: Between two states of a line that is written anew.
_EVERY_S = 0.2
#: Lines of a run where a line cannot be written anew.
_LINES = 10
_WIDTH = 100

OnRound = Callable[[dict[str, Any]], object]


class Progress:
    """Watcher that keeps one line up to date; where that cannot be, writes some ten lines in all.

    Args:
        is_shown: write anything.
        on_round: called with the figures of each round.
        stream: to write to; None: stdout in a notebook, else stderr.
        clock_s: time in seconds.
    """

    def __init__(
        self,
        *,
        is_shown: bool,
        on_round: Sequence[OnRound] = (),
        stream: TextIO | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_shown = is_shown
        self._on_round = on_round
        self._stream = stream or (sys.stdout if is_notebook() else sys.stderr)
        self._is_rewritable = is_notebook() or self._stream.isatty()
        self._clock_s = clock_s
        self._rounds = 0
        self._metrics: list[str] = []
        self._written_s = float("-inf")
        self._shown = self._line = ""

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._rounds = config.rounds
        self._line = f"round 1 of {config.rounds}"
        self._metrics = [m.name for m in participants.spec.metrics if m.kind != "confusion"][:2]

    def round(self, record: RoundRecord) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        for call in self._on_round:
            call(flat_round(msgspec.to_builtins(record.summary)))
        number = record.round_id
        self._line = f"round {number} of {self._rounds}{_figures(record, self._metrics)}"
        is_last = number >= self._rounds
        if self._is_rewritable:
            self._rewrite(self._line, is_due=is_last)
        elif is_last or number % max(1, self._rounds // _LINES) == 0:
            self._write(self._line + "\n")

    def waiting(self, eligible: int, wanted: int) -> None:
        """See `fleet.runs.watcher.Watcher`."""

    def note(self, text: str) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        if text.startswith("data: "):  # the rest is in the report
            self._rewrite("", is_due=True)
            self._write(printable(text) + "\n")

    def working(self, what: str, done: int, of: int) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        if of > 1 and self._is_rewritable:
            self._rewrite(f"{self._line} ({what}: {done} of {of})", is_due=False)

    def end(self) -> None:
        """Ends the line."""
        if self._shown:
            self._write("\n")
            self._shown = ""

    def _rewrite(self, line: str, *, is_due: bool) -> None:
        if not self._is_rewritable or not (is_due or self._is_time()):
            return
        text = printable(line)[:_WIDTH]
        if text or self._shown:
            self._write("\r" + text.ljust(len(self._shown)) + ("" if text else "\r"))
        self._shown = text

    def _is_time(self) -> bool:
        now_s = self._clock_s()
        if now_s - self._written_s < _EVERY_S:
            return False
        self._written_s = now_s
        return True

    def _write(self, text: str) -> None:
        if self._is_shown:
            self._stream.write(text)
            self._stream.flush()


def _figures(record: RoundRecord, metrics: Sequence[str]) -> str:
    if record.status == "abandoned":
        return f": abandoned, {record.held_back or 'too few updates'}"
    known: Mapping[str, float | None] = {"loss": record.loss, **record.metrics}
    central = [f"central_{name}" for name in ("loss", *metrics)]
    names = central if central[0] in known else ["loss", *metrics]
    if names is not central and not record.evaluated:
        known = {f"train_{name}": value for name, value in known.items()}
        names = [f"train_{name}" for name in names]
    found = [(name, known[name]) for name in names if known.get(name) is not None]
    return "".join(f" · {name} {value:.4f}" for name, value in found)


def is_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())
