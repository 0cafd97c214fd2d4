"""A flood must not fill the log, whoever sends it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from fedge.limits import (
    LINES_AT_ONCE,
    LINES_PER_MINUTE,
    SENDER_LINES_AT_ONCE,
    RepeatFilter,
    is_power_of_two,
)


class Lines(logging.Handler):
    """Handler that keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    handler.addFilter(RepeatFilter())
    log.addHandler(handler)
    log.propagate = False
    yield handler
    log.removeHandler(handler)
    log.propagate = True


log = logging.getLogger("test_log_limits")
log.setLevel(logging.DEBUG)


def refuse(sender: str, reason: str = "norm") -> None:
    log.warning("%s refused: 100 %% junk", sender, extra={"sender": sender, "reason": reason})


def test_powers_of_two() -> None:
    assert [n for n in range(-1, 20) if is_power_of_two(n)] == [1, 2, 4, 8, 16]


def test_a_sender_and_reason_is_logged_the_first_second_fourth_eighth_time(lines: Lines) -> None:
    for _ in range(9):
        refuse("pi-1")
    refuse("pi-2")
    refuse("pi-1", "shape")
    assert lines.texts == [
        "pi-1 refused: 100 % junk",
        "pi-1 refused: 100 % junk (2 times so far)",
        "pi-1 refused: 100 % junk (4 times so far)",
        "pi-1 refused: 100 % junk (8 times so far)",
        "pi-2 refused: 100 % junk",
        "pi-1 refused: 100 % junk",
    ]


def test_invented_senders_share_the_lines_of_a_minute(lines: Lines) -> None:
    for number in range(5000):
        refuse(f"intruder-{number}")
    assert len(lines.texts) <= LINES_AT_ONCE + 2
    assert lines.texts[0] == "intruder-0 refused: 100 % junk"


def test_a_line_says_how_many_were_left_out() -> None:
    bounds = RepeatFilter()
    records = [
        logging.LogRecord("x", logging.WARNING, "x.py", 1, "junk of %d", (n,), None)
        for n in range(LINES_AT_ONCE + 8)
    ]
    for record in records:
        record.created = 1000.0
    records[-1].created = 1000.0 + 60 / LINES_PER_MINUTE
    assert [bounds.filter(record) for record in records] == [
        *[True] * LINES_AT_ONCE,
        *[False] * 7,
        True,
    ]
    expected = f"junk of {LINES_AT_ONCE + 7} (7 similar lines left out)"
    assert records[-1].getMessage() == expected


def test_other_places_in_the_code_keep_their_lines(lines: Lines) -> None:
    for number in range(1000):
        refuse(f"intruder-{number}")
    log.error("the disk is full")
    assert lines.texts[-1] == "the disk is full"


def test_what_the_program_itself_says_of_its_work_is_not_bounded(lines: Lines) -> None:
    for number in range(1000):
        log.info("round %d: committed", number)
    assert len(lines.texts) == 1000


def test_a_long_line_is_cut(lines: Lines) -> None:
    log.warning("junk %s", "x" * 5000)
    (text,) = lines.texts
    assert len(text) < 1100
    assert text.endswith("... (5005 characters)")


def test_invented_reasons_leave_the_lines_of_a_minute_to_others(lines: Lines) -> None:
    for number in range(5000):
        refuse("pi-1", f"invented {number}")
    assert len(lines.texts) <= SENDER_LINES_AT_ONCE + 1
    refuse("pi-2")
    assert lines.texts[-1].startswith("pi-2 refused: 100 % junk")


def test_a_line_is_cut_after_control_characters_were_escaped(lines: Lines) -> None:
    refuse("\U000e0001" * 500)
    assert lines.texts[0].startswith("\\U000e0001" * 99)
    assert lines.texts[0].endswith("... (5020 characters)")
    assert len(lines.texts[0]) < 1100
