"""Writer of a first agent.yaml, with comments that say what was found and what to look at."""

from __future__ import annotations

import os
import re
import shlex
import socket
from pathlib import Path
from typing import Any

from edge_agent.data.formats.times import FEATURES
from edge_agent.first_config.guess import Guess
from edge_agent.first_config.look import Look
from fedge.yaml_config import as_yaml
from models.package.spec import ModelSpec

_SHOWN = 12


def config_text(
    found: Look,
    made: Guess,
    spec: ModelSpec | None,
    *,
    out: Path,
    model: str,
    federation: str,
    agent_id: str,
    host: str,
) -> str:
    """Returns an agent.yaml.

    Args:
        found: in the data file.
        made: of it.
        spec: of the model, if one was given.
        out: the file it will be: its paths are relative to its folder.
        model: as the command line named it; empty: not at all.
        federation: its name.
        agent_id: of the device.
        host: of the broker.
    """
    checked = shlex.join(["fedge", "agent", "check", "--config", str(out)])
    lines = [
        f"# Written after a look at {found.path}; docs/configuration.md lists all keys.",
        f"# Try it:  {checked} --model {shlex.quote(model or 'MODEL')}".replace("\n", " "),
        "",
        _line({"federation": federation}, "the name that the coordinator uses too"),
        _line({"agent_id": agent_id}, "unique in the federation: letters, digits, - and _"),
        _line({"broker": {"host": host}}, "with tls, username ... where the broker wants them"),
        "",
        "data:",
        *(f"  {line}".rstrip() for line in _data(found, made, spec, out.parent)),
        "",
        "state_dir: state",
        "",
    ]
    return "\n".join(lines)


def default_agent_id() -> str:
    """Returns this machine's name as far as an id may have its characters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname()).strip("-")[:64] or "device-1"


def _data(found: Look, made: Guess, spec: ModelSpec | None, folder: Path) -> list[str]:
    count = f"{found.files} files, read in the order of their names" if found.files > 1 else ""
    lines = [_line({"path": _relative(found.path, folder)}, count)]
    if found.config.table:
        others = ", ".join(name for name in found.tables if name != found.config.table)
        lines.append(_line({"table": found.config.table}, f"there are also: {others}"))
    words = list(found.words) if found.config.format == "csv" else []
    if found.settings or words:
        settings = {**found.settings, **({"missing": words} if words else {})}
        doubt = "; do these words mean that there is no reading?" if words else ""
        lines.append(_line({"csv": settings}, f"found by looking{doubt}"))
    if found.columns:
        lines += _comment("columns", [f"{c.name} ({c.kind})" for c in found.columns])
    if found.arrays:
        lines += _comment("arrays", [f"{a.name} {a.shape}" for a in found.arrays])
    lines += _times(made)
    lines += _inputs(made, spec)
    lines += _targets(found, made, spec)
    lines += _rows(found, made)
    return lines


def _times(made: Guess) -> list[str]:
    if made.time is None:
        return []
    column = made.time
    time: dict[str, Any] = {"column": column.name}
    doubt = "orders the rows; zone: Europe/Berlin ... where times name none"
    if column.format:
        time["format"] = column.format
    if column.other_format:
        other = column.other_format
        doubt = f"which is the day, the first or the second number? {other} is the other way"
    features = ", ".join(name for name in FEATURES if "_" not in name)
    return [
        _line({"time": time}, doubt),
        f"# inputs may be made of it too: {features}, time.hour_sin ...",
    ]


def _inputs(made: Guess, spec: ModelSpec | None) -> list[str]:
    if spec is None:
        names = made.inputs.get("", [])
        kind = "array" if isinstance(names, str) else "columns"
        example = as_yaml({"inputs": {"INPUT": {kind: names}}})
        return [
            "# Of the model nothing is known: give it with --model, or name its input here.",
            f"# {example}",
        ]
    if made.length and len(spec.inputs) == 1:
        (columns,) = made.inputs.values()
        doubt = made.doubts.get(spec.inputs[0].name, "each is one row of the model")
        window = {"length": made.length, "columns": columns}
        lines = [_line({"window": window}, doubt)]
        if made.time is not None and made.time.apart_s:
            exact = as_yaml({"window": {**window, "every": made.time.apart_s}})
            lines.append(f"# {exact}   # or: a reading every so many s, and a pause ends a window")
        return lines
    lines = ["inputs:"]
    for name, source in made.inputs.items():
        key = "array" if isinstance(source, str) else "columns"
        lines.append("  " + _line({name: {key: source}}, made.doubts.get(name, "")))
    return lines


def _targets(found: Look, made: Guess, spec: ModelSpec | None) -> list[str]:
    key = "array" if found.arrays else "column"
    if not made.targets:
        known = spec is not None and not spec.targets
        return [] if known else [f"# target: {{{key}: NAME}}   # what is learned"]
    lines = []
    several = len(made.targets) > 1
    if several:
        lines.append("targets:")
    for name, source in made.targets.items():
        value: dict[str, Any] = {key: source}
        if name in made.ignore_case:
            value["ignore_case"] = True
        line = _line({name if several else "target": value}, made.doubts.get(name, ""))
        lines.append(f"  {line}" if several else line)
    return lines


def _rows(found: Look, made: Guess) -> list[str]:
    lines = []
    if made.groups:
        lines.append(f"# {as_yaml({'group': made.groups[0]})}   # each is split on its own")
    lines.append(_line({"test_fraction": 0.2}, "the latest rows, held out for measuring"))
    if found.missing or found.words:
        lines.append(_line({"nan": "drop"}, "some cells have no reading: such rows are left out"))
    else:
        lines.append(_line({"nan": "refuse"}, "drop leaves rows without a reading out"))
    return lines


def _comment(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"# {what}: {', '.join(names[:_SHOWN])}{more}".replace("\n", " ")]


def _line(value: dict[str, Any], comment: str = "") -> str:
    text = as_yaml(value)
    return f"{text}   # {comment}" if comment else text


def _relative(path: str, folder: Path) -> str:
    """Returns the path as it is seen from the configuration's folder."""
    whole = Path(path).expanduser().absolute()
    top = folder.absolute()
    return os.path.relpath(whole, top) if whole.is_relative_to(top) else str(whole)
