"""Runs a scenario in virtual time: the machines of `fleet run`, without broker or waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from coordinator.evaluation import central_measure
from coordinator.fleet_data import fleet_findings
from coordinator.records.records import RoundRecord
from coordinator.rounds.stopping import stop_rule
from fedge.errors import ConfigError, did_you_mean
from fedge.yaml_config import load_config, located
from fleet.participants import Participants
from fleet.report import REPORT_FILE, Ended, conclude, write_report
from fleet.runs.abandoned import AbandonedRounds
from fleet.runs.folders import make_out
from fleet.runs.prepared import Prepared, prepare
from fleet.runs.record import record_notes, run_record
from fleet.runs.resume import INTERRUPTED, RunInterrupted, resumed_record, save_record
from fleet.runs.watcher import Watcher
from fleet.scenario import Scenario
from fleet.virtual.event_trace import TraceFile
from fleet.virtual.fault_hits import fault_hits, hit_document, hit_lines
from fleet.virtual.faults import FaultPlan, unknown_names
from fleet.virtual.invariants import Invariants
from fleet.virtual.profiles import Profiles, load_profiles
from fleet.virtual.simulation import Setting, Simulation, make_device
from learning.vector.parameters import F32
from models.runtime.interpreters import find_runtime

log = logging.getLogger(__name__)

TRACE_FILE = "trace.jsonl"
#: Virtual time after the end, for receipts and plans that are still under way.
SETTLE_S = 120.0
#: Agents that a message names.
_LISTED = 10


@dataclass(frozen=True)
class SimulationOptions:
    """Options of a simulation: changes to the scenario, faults, checks, and the output folder.

    Attributes:
        out: folder for report, trace and the trained model.
        changes: to the scenario, by dotted key (see `fleet.settings`).
        faults: file with a fault plan; None: no faults.
        profiles: file with device profiles; None: those that ship with the package.
        trace: write trace.jsonl.
        check: check the invariants after every event.
        limit_s: limit of virtual time; None: see `Simulation.run`.
        signed: the coordinator signs, and agents require its signature.
        resume: go on with the interrupted simulation in `out`: it is played again from its seeds,
            which gives the same rounds to the byte.
    """

    out: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    faults: Path | None = None
    profiles: Path | None = None
    trace: bool = True
    check: bool = True
    limit_s: float | None = None
    signed: bool = False
    resume: bool = False


def simulate_scenario(
    path: Path,
    options: SimulationOptions,
    watcher: Watcher,
    prepared: Prepared | None = None,
    record: Mapping[str, Any] | None = None,
    change: Callable[[Setting], Setting] | None = None,
) -> dict[str, Any]:
    """Simulates a scenario event by event, writes its report and returns it.

    Args:
        path: of the scenario.
        options: of the simulation.
        watcher: told what happens.
        prepared: the scenario with the options' changes, where it was read before.
        record: keys of the report that say what is simulated; None: those of a scenario in a file.
        change: of the setting, before it is simulated.

    Raises:
        ConfigError: scenario, data, model, faults, profiles or options are wrong.
        FleetError: the federation ended without a result, or did not finish.
        InvariantViolated: an invariant of the protocol was violated.
        RunInterrupted: it was interrupted after a round was committed.
    """
    prepared = prepared or prepare(path, options.changes)
    participants, setting = prepared.participants, setting_of(prepared, options)
    if change is not None:
        setting = change(setting)
    record = record or run_record(
        participants,
        path,
        setting.package,
        kind="event_exact",
        options=vars(options),
        started=datetime.now(UTC),
    )
    if options.resume:
        record = resumed_record(options.out, record)
    with _observed(setting, options, record) as observed:
        simulation = Simulation(observed)
        for observer in observed.observers:
            if isinstance(observer, Invariants):
                observer.watch(simulation)
        simulation.coordinator.on_round = _tell_rounds(simulation, watcher)
        watcher.begin(participants, setting.config, f"in memory, seed {setting.seed}")
        for line in record_notes(record):
            watcher.note(line)
        hits = fault_hits(setting.faults, participants.rows) if options.faults else []
        for line in hit_lines(hits):
            watcher.note(line)
        try:
            reason = simulation.run(options.limit_s, SETTLE_S)
        except KeyboardInterrupt:
            watcher.note("interrupted: writing the report; interrupt again to end at once")
            reason = INTERRUPTED
        for observer in observed.observers if reason != INTERRUPTED else ():
            if isinstance(observer, Invariants):
                observer.check_quiescence(simulation)
    return _conclude(simulation, participants, reason, options, watcher, record)


def _tell_rounds(simulation: Simulation, watcher: Watcher) -> Callable[[RoundRecord], None]:
    """Returns what is called with each round's record; too many abandoned ones end a simulation."""
    setting, abandoned = simulation.setting, AbandonedRounds()

    def on_round(record: RoundRecord) -> None:
        watcher.round(record)
        answered = record.reported or record.refused or record.declined or record.held_back
        if not answered or simulation.now_s < setting.faults.calm_s:
            return  # who is away, or behind a fault, comes back
        abandoned.count(record)
        abandoned.check(record)

    return on_round


def make_setting(path: Path, options: SimulationOptions) -> tuple[Scenario, Participants, Setting]:
    """Returns scenario, participants and setting; raises like `simulate_scenario`."""
    prepared = prepare(path, options.changes)
    return prepared.scenario, prepared.participants, setting_of(prepared, options)


def setting_of(prepared: Prepared, options: SimulationOptions) -> Setting:
    """Returns the setting of a scenario.

    Raises:
        ConfigError: faults or profiles are wrong.
    """
    profiles = load_profiles(options.profiles) if options.profiles else load_profiles()
    faults = load_config(options.faults, FaultPlan) if options.faults else FaultPlan()
    names = prepared.participants.rows
    if unknown := unknown_names(faults, names):
        known = list(islice(names, _LISTED))
        raise ConfigError(
            f"{options.faults}: who: no agent {unknown[0]!r}; {did_you_mean(unknown[0], known)}"
            f"agents: {', '.join(known)}{', ...' if len(names) > _LISTED else ''}"
        )
    setting = _setting(prepared, profiles, faults)
    return replace(setting, signed=options.signed)


def _setting(prepared: Prepared, profiles: Profiles, faults: FaultPlan) -> Setting:
    participants, config, package = prepared.participants, prepared.config, prepared.package
    seed = participants.scenario.resolved_seeds.simulation
    assigned = profiles.assign(list(participants.rows), seed)
    devices = [
        make_device(
            name,
            config.federation,
            assigned[name],
            faults,
            dataset=participants.dataset(name),
            phases=participants.phases(name),
            statistics=participants.statistics(name),
        )
        for name in participants.rows
    ]
    data = config.evaluation.data
    return Setting(
        config=config,
        package=package,
        devices=devices,
        seed=seed,
        faults=faults,
        start_hour=profiles.start_hour,
        measure=None
        if data is None
        else central_measure(located(data, prepared.path.parent), package),
    )


@contextmanager
def _observed(
    setting: Setting, options: SimulationOptions, record: Mapping[str, Any]
) -> Iterator[Setting]:
    """Yields the setting with its observers, and keeps the trace file open meanwhile."""
    make_out(options.out)
    (options.out / REPORT_FILE).unlink(missing_ok=True)
    save_record(options.out, record)
    with ExitStack() as stack:
        observers: list[Any] = []
        if options.trace:
            file = stack.enter_context((options.out / TRACE_FILE).open("w", encoding="utf-8"))
            observers.append(TraceFile(file))
        if options.check:
            observers.append(Invariants(setting.config, setting.package, setting.seed))
        yield replace(setting, observers=observers)


def _conclude(
    simulation: Simulation,
    participants: Participants,
    reason: str,
    options: SimulationOptions,
    watcher: Watcher,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    setting, coordinator = simulation.setting, simulation.coordinator
    records = coordinator.store.rounds()
    if reason == INTERRUPTED and all(record.status != "committed" for record in records):
        raise KeyboardInterrupt
    ended_s = simulation.now_s if reason == INTERRUPTED else simulation.ended_s
    statuses = {name: entry.status for name, entry in coordinator.coordinator.roster}
    odd = [found.text for found in fleet_findings(statuses, setting.package.spec)]
    for line in odd:
        watcher.note(f"data: {line}")
    ended = Ended(
        participants,
        setting.package,
        setting.config,
        records,
        options.out,
        runtime=find_runtime(None)[1],
        broker="memory",
        reason=reason,
        seconds=ended_s,
        odd_data=odd,
        status="interrupted" if reason == INTERRUPTED else "complete",
        record=record,
    )
    report = conclude(ended, lambda: _best_theta(simulation), watcher.working)
    report |= {"virtual_seconds": ended_s}
    if options.faults:
        report["faults"] = hit_document(fault_hits(setting.faults, participants.rows))
    write_report(report, options.out)
    if report["status"] == "interrupted":
        raise RunInterrupted(report)
    return report


def _best_theta(simulation: Simulation) -> F32:
    """Returns θ of the best version: from the store, since an interruption may hit the machine."""
    setting = simulation.setting
    rule = stop_rule(setting.config)
    progress = simulation.coordinator.store.load(setting.package.spec.size, rule)
    assert progress is not None, "a round was committed"
    return progress.best[1]
