"""What the journal gets instead of a terminal."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedge.console import JournalFormatter, StepLines
from fedge.limits import printable

#: A command that logs and then fails, as a service does.
COMMAND = """
import logging, click
from fedge.console import command_errors
from fedge.errors import ConfigError

@click.command()
@command_errors
def run():
    try:
        raise OSError("in \\x1b[2J")
    except OSError:
        logging.getLogger("x").exception("first\\nsecond")
    raise ConfigError("agent.yaml: broker: unknown key")

run()
"""


#: One that says much, or little and leaves it to Python to write it.
TALKER = """
import sys, click
from fedge.console import command_errors

@click.command()
@click.argument("times", type=int)
@command_errors
def talk(times):
    sys.stdout.write("word\\n" * times)

talk()
"""


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.DEBUG, "<7>"),
        (logging.INFO, "<6>"),
        (logging.WARNING, "<4>"),
        (logging.ERROR, "<3>"),
    ],
)
def test_the_level_becomes_a_priority(level: int, prefix: str) -> None:
    record = logging.LogRecord("x", level, "", 0, "round %d", (7,), None)
    assert JournalFormatter().format(record) == f"{prefix}round 7"


def test_control_characters_in_foreign_text_are_escaped() -> None:
    assert printable("zu heiß: 81 °C") == "zu heiß: 81 °C"
    assert printable("\x1b[2Jgone\n\u202e\ud800") == r"\x1b[2Jgone\n\u202e\ud800"
    assert printable("one\ntwo\x07", "\n") == "one\ntwo\\x07"


def run(path: Path, *, is_journal: bool) -> list[str]:
    with path.open("w") as stderr:
        status = os.fstat(stderr.fileno())
        inode = status.st_ino if is_journal else status.st_ino + 1
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{inode}"}
        command = [sys.executable, "-c", COMMAND]
        done = subprocess.run(command, stderr=stderr, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    return path.read_text().splitlines()


def test_every_line_to_the_journal_has_its_priority_and_no_time(tmp_path: Path) -> None:
    lines = run(tmp_path / "log", is_journal=True)
    assert lines[:2] == [r"<3>first\nsecond", "<3>Traceback (most recent call last):"]
    assert lines[-2:] == [r"<3>OSError: in \x1b[2J", "<3>error: agent.yaml: broker: unknown key"]
    assert all(line.startswith("<3>") for line in lines)


def test_stderr_outside_the_journal_has_times(tmp_path: Path) -> None:
    lines = run(tmp_path / "log", is_journal=False)
    assert lines[0].endswith(r"ERROR   first\nsecond")
    assert lines[-1] == "error: agent.yaml: broker: unknown key"


@pytest.mark.parametrize("times", [1, 100_000])
def test_a_command_whose_reader_went_away_ends_quietly(times: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", TALKER, str(times)]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("is_terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_steps_are_told_with_the_time_to_a_terminal_only(
    is_terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    times = iter([100.0, 100.04, 112.34])
    tell = StepLines(quiet=quiet, clock=lambda: next(times))
    tell("loading")
    tell("converting")
    lines = "   0.0 s  loading ...\n  12.3 s  converting ...\n"
    assert stderr.getvalue() == (lines if is_terminal and not quiet else "")
