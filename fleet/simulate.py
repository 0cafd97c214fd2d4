"""Simulates a scenario: event by event, or with cohorts where nobody looks at single messages."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError
from fleet.batched.mixed import mixed
from fleet.batched.mode import Choice, choose_mode
from fleet.batched.simulate import How, Simulated, Stopped, interrupted, simulate_fleet
from fleet.participants import Participants
from fleet.report import REPORT_FILE, Ended, conclude, write_report
from fleet.runs.folders import make_out, used_alone
from fleet.runs.prepared import Prepared, prepare
from fleet.runs.record import Kind, record_notes, run_record
from fleet.runs.resume import (
    INTERRUPTED,
    RunInterrupted,
    earlier_record,
    resumed_record,
    save_record,
)
from fleet.runs.watcher import Watcher
from fleet.virtual.profiles import load_profiles
from fleet.virtual.simulate import TRACE_FILE, SimulationOptions, simulate_scenario
from fleet.virtual.simulation import Setting
from models.runtime.interpreters import find_runtime

#: Folder of what a simulation with cohorts goes on with, below its own; gone when it is complete.
STATE_FOLDER = "state"
#: Agents up to which all are simulated by themselves when there are faults.
_ALL_SINGLE = 100


@dataclass(frozen=True)
class SimulateOptions:
    """Options of a simulation.

    Attributes:
        out: folder for report, trace and the trained model.
        changes: to the scenario, by dotted key (see `fleet.settings`).
        mode: auto, exact, bytes or arrays; see `fleet.batched.mode`.
        kernel: auto, vectorized or single; likewise.
        processes: that simulate cohorts; None: one for each core.
        ray: address of Ray's cluster, or "local"; None: without Ray.
        faults: file with a fault plan; None: no faults.
        profiles: file with device profiles; None: those that ship with the package.
        trace: write trace.jsonl; None: where the simulation is exact.
        check: check the invariants after every event; None: where the simulation is exact.
        signed: the coordinator signs, and agents require its signature.
        resume: go on with the interrupted simulation in `out`.
        keep: write what `resume` needs to the disk, after each round of cohorts.
        mode_reason: for `mode`, in words, where it was chosen already; empty: as asked, or chosen
            here.
    """

    out: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "auto"
    kernel: str = "auto"
    processes: int | None = None
    ray: str | None = None
    faults: Path | None = None
    profiles: Path | None = None
    trace: bool | None = None
    check: bool | None = None
    signed: bool = False
    resume: bool = False
    keep: bool = True
    mode_reason: str = ""

    @property
    def cohort_features(self) -> list[str]:
        """Options that only simulations with cohorts have, as they are given."""
        given = {
            "--kernel": self.kernel != "auto",
            "--processes": self.processes not in (None, 1),
            "--ray": self.ray is not None,
        }
        return [name for name, is_given in given.items() if is_given]

    @property
    def exact_features(self) -> list[str]:
        """Options that only the exact simulation has, as they are given."""
        given = {
            "--faults": self.faults is not None,
            "--profiles": self.profiles is not None,
            "--trace": bool(self.trace),
            "--check": bool(self.check),
            "--signed": self.signed,
        }
        return [name for name, is_given in given.items() if is_given]


def simulate(path: Path, options: SimulateOptions, watcher: Watcher) -> dict[str, Any]:
    """Simulates a scenario, writes its report and returns it.

    Raises:
        ConfigError: scenario, data, model, faults, profiles or options are wrong, or another
            process writes into the folder.
        FleetError: the federation ended without a result, or did not finish.
        InvariantViolated: an invariant of the protocol was violated.
        RunInterrupted: it was interrupted after a round was committed.
    """
    return simulate_prepared(prepare(path, options.changes), options, watcher)


def simulate_prepared(
    prepared: Prepared,
    options: SimulateOptions,
    watcher: Watcher,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Simulates what is prepared, writes its report and returns it; raises as `simulate`.

    Args:
        prepared: with the options' changes.
        options: of the simulation.
        watcher: told what happens.
        record: keys of the report that say what is simulated, and how; None: those of a scenario
            in a file.
    """
    choice = _choice(prepared, options)
    if choice.mode == "exact" and (given := options.cohort_features):
        raise ConfigError(f"{given[0]}: of cohorts; this simulation is exact ({choice.why})")
    with used_alone(options.out):
        if choice.mode == "exact":
            exact = _exact_options(options)
            change = _Mix(watcher, options) if _may_mix(prepared, options) else None
            record = record or _record(prepared, "event_exact", vars(exact), choice)
            headed = _Headed(watcher, choice)
            return simulate_scenario(prepared.path, exact, headed, prepared, record, change)
        record = record or _record(prepared, "batched", asdict(options), choice)
        return _Cohorts(prepared, choice.mode, options, _Headed(watcher, choice), record).run()


class _Headed:
    """Watcher that says at the beginning how a fleet is simulated."""

    def __init__(self, watcher: Watcher, choice: Choice) -> None:
        self._begin, self._choice = watcher.begin, choice
        self.round, self.waiting = watcher.round, watcher.waiting
        self.note, self.working = watcher.note, watcher.working

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        """See `Watcher`."""
        how = f"{broker} · mode {self._choice.mode}: {self._choice.why}"
        self._begin(participants, config, how)


def _record(
    prepared: Prepared, kind: Kind, options: Mapping[str, Any], choice: Choice
) -> dict[str, Any]:
    return run_record(
        prepared.participants,
        prepared.path,
        prepared.package,
        kind=kind,
        options={**options, "mode": choice.mode, "mode_reason": choice.why},
        started=datetime.now(UTC),
    )


def _choice(prepared: Prepared, options: SimulateOptions) -> Choice:
    wanted, why = options.mode, options.mode_reason
    if options.resume:
        # As it was begun: a run of more rounds must not become another kind of simulation.
        begun = earlier_record(options.out)["run"]["options"].get("mode", "exact")
        if wanted not in ("auto", begun):
            raise ConfigError(
                f"--resume: the run in {options.out} was begun with --mode {begun}, not {wanted}; "
                "leave out --mode"
            )
        wanted, why = begun, "as begun"
    agents = len(prepared.participants.rows)
    choice = choose_mode(wanted, prepared.config, agents, options.exact_features)
    return replace(choice, why=why) if why else choice


def _may_mix(prepared: Prepared, options: SimulateOptions) -> bool:
    """Returns whether agents without faults may be cohorts: faults alone ask for every message."""
    return (
        options.mode == "auto"
        and options.exact_features == ["--faults"]
        and len(prepared.participants.rows) > _ALL_SINGLE
    )


class _Mix:
    """Makes cohorts of the agents without faults, and says so."""

    def __init__(self, watcher: Watcher, options: SimulateOptions) -> None:
        self._watcher = watcher
        self._any_profile = options.profiles is None

    def __call__(self, setting: Setting) -> Setting:
        changed = mixed(setting, any_profile=self._any_profile)
        inside = len(setting.devices) - len(changed.devices)
        if inside:
            self._watcher.note(
                f"{inside:,} agents without faults are simulated as cohorts, "
                f"{len(changed.devices):,} by themselves (--mode exact: all)"
            )
        return changed


def _exact_options(options: SimulateOptions) -> SimulationOptions:
    return SimulationOptions(
        options.out,
        options.changes,
        options.faults,
        options.profiles,
        trace=options.trace is not False,
        check=options.check is not False,
        signed=options.signed,
        resume=options.resume,
    )


class _Cohorts:
    """One simulation with cohorts, and its folder."""

    def __init__(
        self,
        prepared: Prepared,
        mode: Literal["bytes", "arrays"],
        options: SimulateOptions,
        watcher: Watcher,
        record: Mapping[str, Any],
    ) -> None:
        self._prepared = prepared
        self._options = options
        self._watcher = watcher
        self._state = options.out / STATE_FOLDER
        self._how = How(mode, options.kernel, options.processes, options.ray, options.keep)
        self._record = record

    def run(self) -> dict[str, Any]:
        """Runs it, or goes on with it; returns its report."""
        options, prepared, watcher = self._options, self._prepared, self._watcher
        if options.resume:
            self._record = resumed_record(options.out, self._record)
        make_out(options.out)
        if not options.resume:
            shutil.rmtree(self._state, ignore_errors=True)
        for name in (REPORT_FILE, TRACE_FILE):  # a trace is of single messages
            (options.out / name).unlink(missing_ok=True)
        save_record(options.out, self._record)
        seed = prepared.scenario.resolved_seeds.simulation
        watcher.begin(prepared.participants, prepared.config, f"none, seed {seed}")
        for line in record_notes(self._record):
            watcher.note(line)
        try:
            done = simulate_fleet(prepared, load_profiles(), self._how, self._state, watcher)
        except KeyboardInterrupt as stopped:
            return self._interrupted(stopped)
        for line in done.odd_data:
            watcher.note(f"data: {line}")
        report = self._conclude(done)
        if report["status"] == INTERRUPTED:  # while baselines were measured
            raise RunInterrupted(report)
        shutil.rmtree(self._state, ignore_errors=True)
        return report

    def _interrupted(self, stopped: KeyboardInterrupt) -> dict[str, Any]:
        """Writes what there is so far; what is needed to go on stays."""
        self._watcher.note("interrupted: writing the report; interrupt again to end at once")
        if self._how.is_kept:
            found = interrupted(self._prepared, self._state)
        else:
            found = stopped.so_far if isinstance(stopped, Stopped) else None
        if found is None:
            raise KeyboardInterrupt
        raise RunInterrupted(self._conclude(found, is_complete=False))

    def _conclude(self, done: Simulated, *, is_complete: bool = True) -> dict[str, Any]:
        prepared, options = self._prepared, self._options
        ended = Ended(
            prepared.participants,
            prepared.package,
            prepared.config,
            done.records,
            options.out,
            runtime=f"{find_runtime(None)[1]}, kernel {done.kernel}",
            broker="none",
            reason=done.reason,
            seconds=done.virtual_s,
            odd_data=done.odd_data,
            status="complete" if is_complete else "interrupted",
            record=self._record,
        )
        report = conclude(ended, lambda: done.theta, self._watcher.working)
        report |= {"virtual_seconds": done.virtual_s}
        write_report(report, options.out)
        return report
