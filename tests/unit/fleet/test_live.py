"""A fleet run as people see it."""

from __future__ import annotations

import io

from rich.console import Console

from fleet.live import LiveWatcher
from tests.unit.coordinator.test_stopping import record


def test_words_of_logs_and_of_people_are_shown_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=200)
    watcher = LiveWatcher(console, "rounds")
    watcher.note("agent pi-1 ended with 2: error: [/etc/fedge] is missing [bold]\x1b[2J")
    watcher.round(record(0.5, refused=1, refusals={"[/x]": 1}))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert r"error: [/etc/fedge] is missing [bold]\x1b[2J" in said
    assert "refused: 1 [/x]" in said


def test_who_declined_is_told_with_one_agents_words_for_each_reason() -> None:
    console = Console(file=io.StringIO(), width=200)
    watcher = LiveWatcher(console, "rounds")
    declined = {"pi-1": "training", "pi-2": "training", "pi-3": "too_hot"}
    details = {"training": "pi-2: the loss is nan [/x]", "too_hot": "pi-3: 90 degrees"}
    watcher.round(record(0.5, declined=declined, details=details))
    assert isinstance(console.file, io.StringIO)
    _, *lines = console.file.getvalue().splitlines()
    assert [line.strip() for line in lines] == [
        "1 declined (too_hot): pi-3: 90 degrees",
        "2 declined (training): pi-2: the loss is nan [/x]",
    ]
