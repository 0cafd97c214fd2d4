"""Console output of a fleet run."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from fleet.live import LiveWatcher
from tests.unit.coordinator.test_stopping import record


def test_text_of_logs_and_people_is_shown_literally() -> None:
    console = Console(file=io.StringIO(), width=200)
    watcher = LiveWatcher(console, "rounds")
    watcher.note("agent pi-1 ended with 2: error: [/etc/fedge] is missing [bold]\x1b[2J")
    watcher.round(record(0.5, refused=1, refusals={"[/x]": 1}))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert r"error: [/etc/fedge] is missing [bold]\x1b[2J" in said
    assert "refused: 1 [/x]" in said


def shown_round(**changes: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    LiveWatcher(console, "rounds").round(record(0.5, **changes))
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_declines_are_shown_by_reason_with_one_agents_message() -> None:
    declined = {"pi-1": "training", "pi-2": "training", "pi-3": "too_hot"}
    details = {"training": "pi-2: the loss is nan [/x]", "too_hot": "pi-3: 90 degrees"}
    _, *lines = shown_round(declined=declined, details=details)
    assert lines == [
        "1 declined (too_hot): pi-3: 90 degrees",
        "2 declined (training): pi-1, pi-2; pi-2: the loss is nan [/x]",
    ]


def test_declines_of_an_answered_round_are_left_to_the_closing_table() -> None:
    declined, details = {"pi-1": "not_allowed"}, {"not_allowed": "pi-1: statistics.allow is false"}
    (line,) = shown_round(status="answered", declined=declined, details=details)
    assert "declined" not in line
