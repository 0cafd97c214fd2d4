"""Progress of an experiment on a terminal: runs that are done, those under way, time left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

from fleet.experiments.execution.job import Job
from fleet.experiments.execution.workers import Began, Ended, Event, Rounds


class ProgressBars:
    """Shows all runs as one bar and each run under way as another.

    On a terminal the bars move; elsewhere each run that ends is a line.

    Args:
        console: to write on.
        jobs: to be run.
        done: number of runs that were done before.
    """

    def __init__(self, console: Console, jobs: Sequence[Job], done: int) -> None:
        self._console = console
        self._jobs = {job.key: job for job in jobs}
        self._total, self._before, self._ended = len(jobs) + done, done, 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            Elapsed(),
            TextColumn("left"),
            Remaining(elapsed_when_finished=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        rounds = sum(job.rounds for job in jobs)  # runs differ in length, rounds less so
        self._all = self._bars.add_task("all runs", total=rounds, what=self._count())
        self._own: dict[tuple[str, int], TaskID] = {}
        self._rounds: dict[tuple[str, int], int] = {}

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        match event:
            case Began(key):
                rounds = self._jobs[key].rounds
                name = escape(_name(key))
                self._own[key] = self._bars.add_task(f"  {name}", total=rounds, what="round 0")
            case Rounds(key, done):
                self._advance(key, done)
                self._bars.update(self._own[key], completed=done, what=f"round {done}")
            case Ended(key, error, seconds):
                self._ended += 1
                self._advance(key, self._jobs[key].rounds)
                self._bars.update(self._all, what=self._count())
                self._bars.remove_task(self._own.pop(key))
                self._say(key, error, seconds)

    def _advance(self, key: tuple[str, int], done: int) -> None:
        self._bars.update(self._all, advance=done - self._rounds.get(key, 0))
        self._rounds[key] = done

    def _count(self) -> str:
        return f"{self._before + self._ended} of {self._total} runs"

    def _say(self, key: tuple[str, int], error: str, seconds: float) -> None:
        told: Any = f"failed: {error}" if error else f"{seconds:.1f} s"
        line = f"{self._before + self._ended:>4d}/{self._total}  {_name(key)}  {told}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]} seed {key[1]}"
