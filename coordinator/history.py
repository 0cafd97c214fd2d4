"""History of a federation: its versions, what they are worth, and who made them."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from coordinator.records.records import RoundRecord
from coordinator.report import bytes_text, has_ended, loss_text
from coordinator.storage.store import Store
from coordinator.storage.version_tables import EndedRound, RolledBack
from fedge.limits import printable
from models.package.spec import ModelSpec
from models.package.units import NO_UNITS, Units, metric_text, target_units

_SHOWN_NAMES = 6


def history_document(store: Store, latest: int) -> dict[str, Any]:
    """Returns versions and rounds, the oldest first, as JSON-ready values.

    Args:
        store: of the federation.
        latest: so many of the latest rounds.
    """
    kept, best = set(store.versions()), store.course().best_version
    line = store.line(max(kept, default=0))
    rows = []
    for each in _events(store, latest):
        if isinstance(each, RolledBack):
            row: dict[str, Any] = {"version": each.version, "status": "rolled_back"}
            row |= {"origin": each.origin, "at": each.at}
        else:
            row = {"at": each.at, **msgspec.to_builtins(each.record)}
            row["trained_by"] = _trained_by(each.record)
        made = row["status"] in ("committed", "undone", "rolled_back")
        version = row["version"]
        row |= {
            "kept": made and version in kept,
            "best": made and version == best,
            "counts": made and version in line,
        }
        rows.append(row)
    return {"versions_kept": sorted(kept), "best_version": best, "history": rows}


def history_text(store: Store, latest: int, spec: ModelSpec | None = None) -> str:
    """Returns versions and rounds for an operator, the oldest first.

    Args:
        store: of the federation.
        latest: so many of the latest rounds.
        spec: of the model, for units; None shows numbers alone.
    """
    units = NO_UNITS if spec is None else target_units(spec)
    document = history_document(store, latest)
    rows = document["history"]
    lines = []
    left = store.number_of_rounds() - sum(row["status"] != "rolled_back" for row in rows)
    if left > 0:
        lines.append(f"… {left} earlier rounds: --last shows more")
    lines += [_line(row, units) for row in rows]
    if not rows:
        lines.append("no round has ended yet")
    lines.append("go back with `fedge coordinator rollback --to VERSION`, to one that is kept")
    return "\n".join(map(printable, lines))


def _events(store: Store, latest: int) -> list[EndedRound | RolledBack]:
    rounds = store.ended_rounds(latest)
    since = rounds[0].at if rounds else 0.0
    back = [each for each in store.rollbacks() if each.at >= since]
    return sorted([*rounds, *back], key=lambda each: each.at)


def _trained_by(record: RoundRecord) -> list[str]:
    return sorted(name for name, part in record.agents.items() if part.task == "train")


def _line(row: dict[str, Any], units: Units) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["at"]))
    if row["status"] == "rolled_back":
        what = f"weights of version {row['origin']} (an operator went back)"
        return _joined([f"version {row['version']:<4}", when, what], row)
    if row["status"] in ("abandoned", "answered"):
        head = f"{row['status']:12s}"
        return _joined([head, when, f"round {row['round_id']}", _reported(row)], row)
    parts = [f"version {row['version']:<4}", when, f"round {row['round_id']}", _reported(row)]
    if row["loss"] is not None:
        parts.append(loss_text(row["loss"], evaluated=row["evaluated"]))
    metrics = sorted(row["metrics"].items())
    parts += [f"{name} {metric_text(units, name, value)}" for name, value in metrics]
    if has_ended(row["status"], row["seconds"], evaluated=row["evaluated"]):
        parts.append(f"{bytes_text(row['bytes_up'])} up, {bytes_text(row['bytes_down'])} down")
    else:
        parts.append("being measured")
    return _joined(parts, row)


def _reported(row: dict[str, Any]) -> str:
    names = row["trained_by"]
    shown = ", ".join(names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{row['reported']} of {row['asked']} agents" + (f" ({shown}{more})" if names else "")


def _joined(parts: list[str], row: dict[str, Any]) -> str:
    marks = [name for name in ("best", "kept") if row[name]]
    marks += ["undone"] if row["status"] == "undone" else []
    return " · ".join([*parts, *([", ".join(marks)] if marks else [])])
