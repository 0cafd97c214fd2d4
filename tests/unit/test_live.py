"""A fleet run as people see it."""

from __future__ import annotations

import io

from rich.console import Console

from fleet.live import LiveWatcher
from tests.unit.test_stopping import record


def test_words_of_logs_and_of_people_are_shown_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=200)
    watcher = LiveWatcher(console, "rounds")
    watcher.note("agent pi-1 ended with 2: error: [/etc/fedge] is missing [bold]\x1b[2J")
    watcher.round(record(0.5, refused=1, refusals={"[/x]": 1}))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert r"error: [/etc/fedge] is missing [bold]\x1b[2J" in said
    assert "refused: 1 [/x]" in said
