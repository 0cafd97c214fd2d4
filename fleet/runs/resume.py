"""Interrupted runs: what they leave, and how a later command goes on with them.

RUN_FILE in the folder of a run has its record from the start, so that a run that was killed can go
on as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError
from fedge.files import write_whole

RUN_FILE = "run.json"
#: As `fleet.report.REPORT_FILE`.
_REPORT = "report.json"
#: Why a run ended before its end, in its report: by a person, or since it could not go on.
INTERRUPTED = "interrupted"
FAILED = "failed"
#: Keys of the configuration in which a run that goes on may differ.
_MAY_DIFFER = frozenset({"federation.rounds", "show"})
#: Keys that say which of several things a section is, beside what all else in it means.
_TAGS = ("name", "kind")
#: Options of a command that change its results.
_OPTIONS = ("faults", "profiles", "signed")
_READABLE = 0o644


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted after a round was committed; its report and its model are written.

    A KeyboardInterrupt: who does not know it ends, as after any interruption.

    Attributes:
        report: as it was written.
    """

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__()
        self.report = report


def save_record(out: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of a run that begins into its folder."""
    write_whole(out / RUN_FILE, json.dumps(record, indent=1).encode() + b"\n", _READABLE)


def earlier_record(out: Path) -> dict[str, Any]:
    """Returns the record of the run whose folder this is.

    Raises:
        ConfigError: the folder holds no run, or a damaged record.
    """
    path = out / RUN_FILE
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record["run"]["options"]["changes"], dict):
            raise TypeError("changes are no mapping")
    except FileNotFoundError as error:
        raise ConfigError(
            f"--resume: {out} holds no run to go on with; name its folder with --out, or leave out "
            "--resume"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--resume: {path} cannot be read: {error}; begin the run anew"
        ) from error
    found: dict[str, Any] = record
    return found


def resumed_changes(out: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of the run in a folder, and those that are given now, which win.

    Raises:
        ConfigError: see `earlier_record`.
    """
    return {**earlier_record(out)["run"]["options"]["changes"], **changes}


def resumed_record(out: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record of a run that goes on: when it began, and when it went on.

    Args:
        out: folder of the run.
        record: as a run that begins now has it.

    Raises:
        ConfigError: the run there has another configuration, model, data or options, of which it
            names the first; or see `earlier_record`.
    """
    earlier = earlier_record(out)
    for what, before, now in _differences(earlier, record):
        raise ConfigError(
            f"--resume: the run in {out} was begun with {what} {_shown(before)}, now it is "
            f"{_shown(now)}; run it as it was, or name another folder with --out"
        )
    _check_rounds(out, earlier, record)
    before, now = earlier["run"], record["run"]
    resumed = [*before.get("resumed", []), now["started"]]
    return {**record, "run": {**now, "started": before["started"], "resumed": resumed}}


def _check_rounds(out: Path, earlier: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raises ConfigError where fewer rounds are asked for, or none are left to do."""
    before, now = (each["configuration"]["federation"]["rounds"] for each in (earlier, record))
    if now < before:
        raise ConfigError(
            f"--resume: the run in {out} was begun for {before} rounds, {now} are fewer; only more "
            "can be asked for"
        )
    if now == before and _status(out) == "complete":
        raise ConfigError(
            f"--resume: the run in {out} is complete after {before} rounds; --rounds asks for more"
        )


def _status(out: Path) -> str:
    """Returns the status in the report of a run; empty while there is none."""
    try:
        return str(json.loads((out / _REPORT).read_bytes()).get("status", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _differences(
    earlier: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    before, now = earlier["configuration"], record["configuration"]
    yield from _other_choices(before, now)
    flat, other = dict(_flat(before)), dict(_flat(now))
    for key in sorted(flat.keys() | other.keys()):
        if key not in _MAY_DIFFER and flat.get(key) != other.get(key):
            yield key, flat.get(key), other.get(key)
    before, now = earlier["run"], record["run"]
    if before["package"] != now["package"]:
        yield "the model", before["package"][:12], now["package"][:12]
    for key in sorted((before["files"].keys() | now["files"].keys()) - {"scenario"}):
        digests = [run["files"].get(key, {}).get("sha256", "none")[:12] for run in (before, now)]
        if digests[0] != digests[1]:
            yield f"the file of {key}, SHA-256", *digests
    for key in _OPTIONS:
        if before["options"].get(key) != now["options"].get(key):
            yield f"--{key}", before["options"].get(key), now["options"].get(key)


def _other_choices(
    before: Mapping[str, Any], now: Mapping[str, Any], key: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields choices of another name, as a whole: their settings are not to be compared."""
    for name in before.keys() & now.keys():
        first, second = before[name], now[name]
        if not isinstance(first, Mapping) or not isinstance(second, Mapping):
            continue
        where = f"{key}.{name}" if key else name
        for tag in _TAGS:
            if tag in first and tag in second and first[tag] != second[tag]:
                yield where, first[tag], second[tag]
        yield from _other_choices(first, second, where)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)
