"""What every command shares: logging, one-line errors, exit codes.

A command decorated with `@command_errors` gets `-v/--verbose`; a `FederationError` becomes one
line on stderr and the class's exit code, with a traceback only under `-v`.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from fedge.errors import ConfigError, FederationError

#: What a shell says of a command that Ctrl-C ended (128 + SIGINT).
_INTERRUPTED = 130
#: The same of one whose reader went away, as `head` does (128 + SIGPIPE).
_NO_READER = 141
_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
#: Of syslog, from the most urgent that we have (sd-daemon(3)).
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def stderr_is_journal() -> bool:
    """Whether stderr ends in the systemd journal, by JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def printable(text: str, keep: str = "") -> str:
    """Text of others as it can be shown: what is no letter, as its escape (`\\x1b`, `\\n`).

    Whoever may send a text could move a terminal's cursor with it, or write a line of a log.

    Args:
        text: to be shown.
        keep: characters that are left as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


class LineFormatter(logging.Formatter):
    """A message on one line, whatever is in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  as it is called there
        """See `logging.Formatter.formatMessage`."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """See `logging.Formatter.formatException`."""
        return printable(super().formatException(ei), "\n")


class JournalFormatter(LineFormatter):
    """Lines with their priority in front, for `journalctl -p`; the journal has the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        found = (number for level, number in _PRIORITIES if record.levelno >= level)
        prefix = f"<{next(found, 7)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _configure_logging(verbose: bool, journal: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter() if journal else LineFormatter(_FORMAT))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def log_less(level: int, *names: str) -> Callable[[], None]:
    """Leaves out what these loggers say below `level`, unless debug messages are wanted.

    Returns:
        What puts it back.
    """
    if logging.getLogger().level <= logging.DEBUG:
        return lambda: None
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)

    def restore() -> None:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)

    return restore


class FiniteRange(click.FloatRange):
    """A number in a range. NaN is in none, though it compares false with every limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number to count with.", param, ctx)
        return number


def _tell(text: str, verbose: bool, journal: bool) -> None:
    """Tells the error that is being handled."""
    if verbose:
        traceback.print_exc()
    shown = printable(text, "\n")
    click.echo(f"{'<3>' if journal else ''}error: {shown}", err=True)


def command_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-v/--verbose`, sets logging up, and turns a FederationError into line and exit code.

    So does a file that this user may not look at, which is no defect of ours.
    """

    @click.option("-v", "--verbose", is_flag=True, help="Debug messages, and tracebacks of errors.")
    @functools.wraps(function)
    def wrapped(*args: Any, verbose: bool, **kwargs: Any) -> Any:
        journal = stderr_is_journal()
        _configure_logging(verbose, journal)
        try:
            result = function(*args, **kwargs)
            if sys.stdout is not None:  # as it is where there is none
                sys.stdout.flush()
            return result
        except FederationError as error:
            _tell(str(error), verbose, journal)
            sys.exit(error.exit_code)
        except PermissionError as error:  # whoever looked whether a file is there
            if error.filename is None:
                raise
            who = "run it as the user whom this belongs to, or with sudo"
            name = printable(os.fsdecode(error.filename))  # a line break in it ends no line of ours
            _tell(f"{name}: {error.strerror}: {who}", verbose, journal)
            sys.exit(ConfigError.exit_code)
        except KeyboardInterrupt:  # click would end with 1, which is a defect's code
            click.echo("interrupted", err=True)
            sys.exit(_INTERRUPTED)
        except BrokenPipeError:  # likewise
            if verbose:
                traceback.print_exc()
            # What is still to be written would fail once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_NO_READER)

    return wrapped
