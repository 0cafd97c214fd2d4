"""`report.json`: the result of a run, for each task. Its key names are a public contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord, falls
from coordinator.statistics_table import answer_document
from fedge.errors import ConfigError, FleetError
from fleet.baselines import Baselines, measure_baselines
from fleet.participants import Participants
from fleet.scenario import Scenario
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.package.units import metrics_in_units, target_units

REPORT_FILE = "report.json"
#: Key of the answer to a task that is neither `train` nor `statistics`.
ANSWER = "answer"


@dataclass(frozen=True, eq=False)
class Ended:
    """A run whose processes have ended.

    Attributes:
        participants: the agents and their rows.
        package: the model before training.
        config: of the federation.
        records: of all rounds.
        out: folder of the run.
        runtime: interpreters of the agents.
        broker: kind of the broker.
        reason: why the federation ended.
        seconds: duration of the run.
        odd_data: what the coordinator found odd about the agents' data.
        status: "interrupted" for a run that has rounds to go, or whose baselines have.
        record: keys of the report that say how it was run, see `fleet.runs.record.run_record`.
    """

    participants: Participants
    package: ModelPackage
    config: CoordinatorConfig
    records: Sequence[RoundRecord]
    out: Path
    runtime: str
    broker: str
    reason: str
    seconds: float
    odd_data: Sequence[str] = ()
    status: Literal["complete", "interrupted"] = "complete"
    record: Mapping[str, Any] = field(default_factory=dict)


def conclude(
    ended: Ended, read_theta: Callable[[], F32], progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Saves the trained model in the run's folder, measures baselines, and returns the report.

    Baselines are measured when the run is complete; interrupted meanwhile, the report lacks them
    and says so in its status.

    Args:
        ended: the run.
        read_theta: returns θ of the best version; not called where nothing was trained.
        progress: called with (kind, done, total) after every baseline model.

    Raises:
        FleetError: no round had a result.
    """
    task = name_of(ended.config.task)
    if task == "train":
        return _trained(ended, read_theta, progress)
    return _answered(ended, "statistics" if task == "statistics" else ANSWER)


def _trained(
    ended: Ended, read_theta: Callable[[], F32], progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Saves the trained model and measures its baselines."""
    if not any(record.status == "committed" for record in ended.records):
        raise FleetError("no round was committed")
    theta = read_theta()
    replace(ended.package, initial=theta.copy()).save(ended.out / "model")
    if ended.status == "interrupted":
        return _report(ended, Baselines())
    try:
        baselines = measure_baselines(
            ended.participants, ended.config, ended.package, theta, progress
        )
    except KeyboardInterrupt:
        return _report(replace(ended, status="interrupted"), Baselines())
    return _report(ended, baselines)


def _answered(ended: Ended, key: str) -> dict[str, Any]:
    """Returns the report of a task that is one phase, its answer under `key`; no θ was made."""
    answered = [record for record in ended.records if record.status == "answered"]
    if not answered:
        raise FleetError("no round was answered")
    return _report(ended, Baselines()) | {key: answer_document(answered[-1])}


def _report(ended: Ended, baselines: Baselines) -> dict[str, Any]:
    facts = {
        "agents": len(ended.participants.rows),
        "codec": name_of(ended.config.codec),
        "clients": dict(ended.participants.clients),
        "data": list(ended.odd_data),
        "runtime": ended.runtime,
        "broker": ended.broker,
        "reason": ended.reason,
        "status": ended.status,
        "seconds": ended.seconds,
    }
    scenario = ended.participants.scenario
    report = build_report(scenario, ended.package, ended.records, baselines, facts)
    return report | dict(ended.record)


def build_report(
    scenario: Scenario,
    package: ModelPackage,
    records: Sequence[RoundRecord],
    baselines: Baselines,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Returns the report as JSON-ready values.

    Args:
        scenario: that was run.
        package: the model.
        records: of all rounds.
        baselines: measured in the same run.
        facts: agents, codec, runtime, broker, seconds, reason, status, perhaps clients and data.
    """
    last = _handed_out(records)
    unmeasured = _unmeasured(records) if facts["status"] == "interrupted" else 0
    report = {
        "scenario": scenario.name,
        "description": scenario.description,
        "licence": scenario.licence,
        "model": package.spec.name,
        "parameters": package.spec.size,
        "classes": list(package.spec.targets[0].classes) if package.spec.targets else [],
        "targets": [msgspec.to_builtins(target) for target in package.spec.targets],
        "agents": facts["agents"],
        "unseen": list(scenario.unseen),
        "clients": facts.get("clients", {}),
        "data": facts.get("data", []),
        "codec": facts["codec"],
        "runtime": facts["runtime"],
        "broker": facts["broker"],
        "status": facts["status"],
        "stopped": facts["reason"],
        "rounds": [msgspec.to_builtins(record) for record in records],
        "final": {
            "loss": last.loss if last else None,
            "metrics": dict(last.metrics) if last else {},
            "in_units": metrics_in_units(target_units(package.spec), last.metrics) if last else {},
            "matrices": dict(last.matrices) if last else {},
            "version": last.version if last else 0,
            "bytes_up": sum(record.bytes_up for record in records),
            "bytes_down": sum(record.bytes_down for record in records),
            "seconds": facts["seconds"],
        },
        "baselines": baselines.figures,
        "baseline_details": baselines.details,
    }
    if unmeasured:
        report["unmeasured_round"] = unmeasured
    if baselines.failed:
        report["baselines_failed"] = baselines.failed
    return report | ({"detection": baselines.detection} if baselines.detection else {})


def _handed_out(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """Returns the record of the best version, or of the last one when nothing says which it is."""
    committed = [record for record in records if record.status == "committed"]
    # A round that was interrupted before it was measured does not say it.
    best = next((r.best_round for r in reversed(committed) if r.best_round), 0)
    found = (record for record in committed if record.round_id == best)
    return next(found, committed[-1] if committed else None)


def _unmeasured(records: Sequence[RoundRecord]) -> int:
    """Returns the last round, if it was committed and its end is not known; else 0."""
    last = records[-1] if records else None
    if last is None or last.status != "committed":
        return 0
    # What it took is known at its end: a round that has ended sent bytes, or took time.
    return 0 if last.bytes_up or last.bytes_down or last.seconds else last.round_id


def ended_rounds(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rounds of a report, without one that was interrupted before it was measured."""
    unmeasured = report.get("unmeasured_round")
    return [record for record in report["rounds"] if record["round_id"] != unmeasured]


def write_report(report: dict[str, Any], folder: Path) -> Path:
    """Writes the report whole or not at all; returns its path."""
    path = folder / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)
    return path


def check_compared(report: dict[str, Any]) -> None:
    """Checks that all baselines of the scenario were measured.

    Raises:
        ConfigError: a baseline could not be trained or measured; names it and the error.
    """
    failed = report.get("baselines_failed", {})
    if failed:
        why = "; ".join(f"{kind}: {words}" for kind, words in failed.items())
        raise ConfigError(f"the report lacks baselines: {why}")


def verdicts(scenario: Scenario, report: dict[str, Any]) -> list[tuple[bool, str]]:
    """Returns whether each limit of the scenario's comparison was kept, with a line for people."""
    wanted = scenario.baselines
    where = "unseen" if scenario.unseen else "own"
    figures, federated = report["baselines"], federated_figure(scenario, report, where)
    sign = -1.0 if falls(wanted.metric) else 1.0
    found = []
    pooled, own = figures.get(f"pooled_on_{where}"), figures.get(f"own_on_{where}")
    if wanted.within is not None and pooled is not None and federated is not None:
        gain = sign * (federated - pooled)
        words = f"{gain:+.3f} against pooled, at least {-wanted.within:+} wanted"
        found.append((gain >= -wanted.within, words))
    if wanted.above_own is not None and own is not None and federated is not None:
        gain = sign * (federated - own)
        words = f"{gain:+.3f} against own, at least {wanted.above_own:+} wanted"
        found.append((gain >= wanted.above_own, words))
    return found


def federated_figure(scenario: Scenario, report: dict[str, Any], where: str) -> float | None:
    """Returns the federated model's value of the compared metric.

    Args:
        scenario: that was run.
        report: of the run.
        where: "unseen" for the rows of agents that only measure, "own" for the others' held-out
            rows.
    """
    metric, final = scenario.baselines.metric, report["final"]
    if where == "unseen":
        value = final["metrics"].get(f"unseen_{metric}")
    else:
        value = final["loss"] if metric == "loss" else final["metrics"].get(metric)
    return None if value is None else float(value)
