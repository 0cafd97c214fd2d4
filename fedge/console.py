"""Common parts of all commands: logging, one-line errors, exit codes.

A command decorated with `@command_errors` gets `-v/--verbose`; a `FederationError` becomes one
line on stderr and the class's exit code, with a traceback only under `-v`.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import click

from fedge.errors import ConfigError, FederationError
from fedge.limits import RepeatFilter, printable

#: Exit code after Ctrl-C (128 + SIGINT).
_INTERRUPTED = 130
#: Exit code when the reader of stdout has ended, as `head` does (128 + SIGPIPE).
_NO_READER = 141
_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
#: Priorities of syslog (sd-daemon(3)), the most urgent first.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def stderr_is_journal() -> bool:
    """Returns whether stderr is the systemd journal, by JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun: `1 row`, `3,600 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class LineFormatter(logging.Formatter):
    """Formatter that escapes control characters, so that a message is one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  as it is called there
        """See `logging.Formatter.formatMessage`."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """See `logging.Formatter.formatException`."""
        return printable(super().formatException(ei), "\n")


class JournalFormatter(LineFormatter):
    """Formatter for the journal: priority before each line, for `journalctl -p`; no time."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        found = (number for level, number in _PRIORITIES if record.levelno >= level)
        prefix = f"<{next(found, 7)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _configure_logging(verbose: bool, journal: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter() if journal else LineFormatter(_FORMAT))
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


def log_less(level: int, *names: str) -> Callable[[], None]:
    """Suppresses messages of these loggers below `level`, unless debug messages are wanted.

    Returns:
        Function that restores the loggers.
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


class CommandGroup(click.Group):
    """Group whose help shows the whole first sentence of each command.

    Click cuts them to what is left of the line, at 80 columns in the middle of a sentence.
    """

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.MultiCommand.format_commands`."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name, command in found
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class StepLines:
    """Writes what a long command does to stderr, a line a step, with the seconds since its start.

    Args:
        quiet: whether nothing is written; always so where stderr is not a terminal.
        clock: returns seconds.
    """

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet or sys.stderr is None or not sys.stderr.isatty()
        self._clock = clock
        self._began_s = clock()

    def __call__(self, text: str) -> None:
        """Writes that a step begins."""
        if not self._quiet:
            click.echo(f"{self._clock() - self._began_s:6.1f} s  {text} ...", err=True)


class FiniteRange(click.FloatRange):
    """Number in a range; refuses NaN, which compares false with every limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        return _finite(self, super().convert(value, param, ctx), value, param, ctx)


class WholeRange(click.IntRange):
    """Whole number in a range; an error calls what is none by that name."""

    name = "whole number"


class FiniteFloat(click.types.FloatParamType):
    """Any number but NaN and the infinite ones; help shows no range for it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        return _finite(self, super().convert(value, param, ctx), value, param, ctx)


def _finite(
    kind: click.ParamType[Any],
    number: float,
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> float:
    if not math.isfinite(number):
        kind.fail(f"{value!r} is not a finite number.", param, ctx)
    return number


def _print_error(text: str, verbose: bool, journal: bool) -> None:
    """Prints the error that is being handled."""
    if verbose:
        traceback.print_exc()
    shown = printable(text, "\n")
    click.echo(f"{'<3>' if journal else ''}error: {shown}", err=True)


def command_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-v/--verbose`, sets up logging, turns FederationError into a line and exit code.

    A PermissionError about a file is treated in the same way: it is not a defect of the program.
    """

    @click.option("-v", "--verbose", is_flag=True, help="Debug messages, and tracebacks of errors.")
    @functools.wraps(function)
    def wrapped(*args: Any, verbose: bool, **kwargs: Any) -> Any:
        journal = stderr_is_journal()
        _configure_logging(verbose, journal)
        try:
            result = function(*args, **kwargs)
            if sys.stdout is not None:  # None without a console
                sys.stdout.flush()
            return result
        except FederationError as error:
            _print_error(str(error), verbose, journal)
            sys.exit(error.exit_code)
        except PermissionError as error:
            if error.filename is None:
                raise
            advice = "run the command as the owner of this file, or with sudo"
            name = printable(os.fsdecode(error.filename))  # may contain line breaks
            _print_error(f"{name}: {error.strerror}: {advice}", verbose, journal)
            sys.exit(ConfigError.exit_code)
        except KeyboardInterrupt:  # click would exit with 1, the code of defects
            click.echo("interrupted", err=True)
            sys.exit(_INTERRUPTED)
        except BrokenPipeError:  # likewise
            if verbose:
                traceback.print_exc()
            # Buffered output would raise again when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_NO_READER)

    return wrapped
