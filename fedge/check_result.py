"""Results of `fedge … doctor`: one line per check, with advice."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Literal

import click
import msgspec

from fedge.errors import ConfigError, LinkError
from fedge.limits import printable

State = Literal["ok", "warning", "failed", "skipped"]
#: Place of a problem: "here" is this machine and its files, "network" the broker and the way to it.
Area = Literal["here", "network"]

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}
_WIDTH = 100
_INDENT = " " * 22


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one check.

    Attributes:
        name: stable name of the check.
        state: failed: the service will not work; warning: it works, with a problem.
        found: finding, human-readable.
        advice: next step; empty if none is needed.
        area: place of the problem.
        facts: figures for programs, with units in their names.
    """

    name: str
    state: State
    found: str
    advice: str = ""
    area: Area = "here"
    facts: dict[str, Any] = {}


def ok(name: str, found: str, area: Area = "here", **facts: Any) -> Check:
    """Returns a check without a problem."""
    return Check(name=name, state="ok", found=found, area=area, facts=facts)


def warning(name: str, found: str, advice: str, area: Area = "here", **facts: Any) -> Check:
    """Returns a check with a problem that does not stop the service."""
    return Check(name=name, state="warning", found=found, advice=advice, area=area, facts=facts)


def failed(name: str, found: str, advice: str, area: Area = "here", **facts: Any) -> Check:
    """Returns a check with a problem that stops the service."""
    return Check(name=name, state="failed", found=found, advice=advice, area=area, facts=facts)


def skipped(name: str, why: str, area: Area = "here") -> Check:
    """Returns a check that was not possible."""
    return Check(name=name, state="skipped", found=why, area=area)


def exit_code(checks: Iterable[Check]) -> int:
    """Returns 0 if no check failed; else the exit code by area, this machine's first."""
    failures = {check.area for check in checks if check.state == "failed"}
    if "here" in failures:
        return ConfigError.exit_code
    return LinkError.exit_code if failures else 0


def report(checks: Iterable[Check], *, as_json: bool) -> int:
    """Prints each check as it comes (or all as one JSON object); returns the exit code."""
    seen = []
    for check in checks:
        seen.append(check)
        if not as_json:
            _print(check)
    code = exit_code(seen)
    counts = {state: sum(c.state == state for c in seen) for state in _COLOURS}
    if as_json:
        document = {
            "checks": [msgspec.to_builtins(check) for check in seen],
            "counts": counts,
            "exit_code": code,
        }
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        click.echo(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return code


def _print(check: Check, echo: Callable[..., None] = click.echo) -> None:
    state = click.style(f"{check.state:8s}", fg=_COLOURS[check.state])
    # Texts of strangers, retained at a broker, must not control the terminal.
    found, advice = printable(check.found, "\n"), printable(check.advice, "\n")
    lines = textwrap.wrap(found, _WIDTH - len(_INDENT), break_on_hyphens=False) or [""]
    echo(f"{state} {check.name:12s} {lines[0]}")
    for line in lines[1:]:
        echo(f"{_INDENT}{line}")
    for line in textwrap.wrap(advice, _WIDTH - len(_INDENT) - 2, break_on_hyphens=False):
        echo(f"{_INDENT}> {line}")
