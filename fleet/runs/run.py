"""Runs a scenario in real processes: a broker, a coordinator, and agents alone or hosted."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from broker.link.settings import BrokerSettings
from broker.protocol.topics import Topics
from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fedge.errors import FleetError, LinkError
from fleet.baselines import check_baselines
from fleet.participants import Participants, make_participants
from fleet.report import Ended, conclude, write_report
from fleet.runs import folders
from fleet.runs.abandoned import AbandonedRounds
from fleet.runs.availability import Availability
from fleet.runs.broker_choice import chosen_broker
from fleet.runs.coordinator_state import best_theta, runtimes, stored_rounds
from fleet.runs.host import AGENT_FILE
from fleet.runs.processes import Processes
from fleet.runs.record import record_notes, run_record
from fleet.runs.resume import (
    FAILED,
    INTERRUPTED,
    RunInterrupted,
    earlier_record,
    resumed_record,
    save_record,
)
from fleet.runs.retained_cleanup import clear_retained
from fleet.runs.watcher import Watcher
from fleet.scenario import load_scenario, plugin_paths, scenario_package
from models.package.package import ModelPackage

log = logging.getLogger(__name__)

#: Longest silence of the coordinator, while agents have ended and no round is open, before the
#: run counts as stuck.
_STUCK_S = 90.0
_GOODBYE_S = 10.0
#: So long a wait for agents that lack something is told: while they start it means nothing.
_LACKING_S = 2.0
#: Above this number agents share processes: an interpreter with numpy and the runtime takes 40 MB
#: and half a second of a core to start.
_OWN_PROCESSES = 24


@dataclass(frozen=True)
class RunOptions:
    """Options of a run: changes to the scenario, the broker, and the output folder.

    Attributes:
        out: folder for report, logs and the trained model; those of an earlier run are removed.
        changes: to the scenario, by dotted key (see `fleet.settings`).
        broker: auto, mosquitto, embedded, mqtt://host:port, or a file with the keys of `broker`.
        hosts: number of processes that host the agents; 0 gives each agent its own process; None
            decides by the number of agents.
        resume: go on with the interrupted run in `out`, with as many hosts as it had.
    """

    out: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    broker: str = "auto"
    hosts: int | None = None
    resume: bool = False


def run_scenario(path: Path, options: RunOptions, watcher: Watcher) -> dict[str, Any]:
    """Runs a scenario, writes its report and returns it.

    Raises:
        ConfigError: scenario, data, model or options are wrong, or too few agents can take part.
        LinkError: the external broker cannot be reached.
        FleetError: the run did not come to its end; after a committed round its report is written.
        RunInterrupted: it was interrupted after a round was committed.
    """
    scenario = load_scenario(path, options.changes)
    package = scenario_package(scenario, path)
    check_baselines(scenario.baselines, package.spec, path)
    participants = make_participants(scenario, path, package.spec, scenario.agents)
    with folders.used_alone(options.out), chosen_broker(options.broker) as (settings, kind):
        run = _Run(package, participants, options, settings, watcher)
        run.begin_record(path, kind, options.changes)
        config = run.configure(path, kind)
        watcher.begin(participants, config, f"{kind} on {settings.host}:{settings.port}")
        run.tell_beginning()
        started = time.monotonic()
        failure: FleetError | None = None
        try:
            reason = run.run(config)
        except FleetError as error:
            failure, reason = error, FAILED
        finally:
            if kind == "external":
                _remove_retained(settings, config.federation, watcher)
        seconds = time.monotonic() - started
    if reason in (FAILED, INTERRUPTED) and not run.has_result():
        raise failure or KeyboardInterrupt
    report = run.conclude(config, kind, reason, seconds)
    if failure is not None:
        raise FleetError(
            f"{failure}; report and model so far are in {options.out}, --resume goes on"
        ) from failure
    if report["status"] == "interrupted":
        raise RunInterrupted(report)
    return report


def _remove_retained(settings: BrokerSettings, federation: str, watcher: Watcher) -> None:
    try:
        clear_retained(settings, federation)
    except LinkError as error:  # the result is kept
        watcher.note(
            f"retained messages of {federation} are still on the broker: {error}; remove "
            f"{Topics(federation).root}# there"
        )


class _Run:
    """The folder and the processes of one run."""

    def __init__(
        self,
        package: ModelPackage,
        participants: Participants,
        options: RunOptions,
        settings: BrokerSettings,
        watcher: Watcher,
    ) -> None:
        self.package = package
        self.participants = participants
        self.out = options.out
        self.is_resumed = options.resume
        self.hosts = host_count(len(participants.rows), options.hosts)
        if options.resume:
            self.hosts = earlier_record(options.out)["run"]["options"]["hosts"]
        self.settings = settings
        self.watcher = watcher
        self.processes = Processes(options.out / "processes")
        self.state = self.processes.folder / folders.COORDINATOR / "state"
        self.record: dict[str, Any] = {}
        self.records: list[RoundRecord] = []
        self._resumed_at = 0
        self.odd_data: list[str] = []

    def begin_record(self, path: Path, broker: str, changes: Mapping[str, Any]) -> None:
        """Records what is run, before anything of it changes.

        The broker's address is left out: it may hold a login.
        """
        options = {"broker": broker, "hosts": self.hosts, "out": self.out, "changes": changes}
        self.record = run_record(
            self.participants,
            path,
            self.package,
            kind="processes",
            options=options,
            started=datetime.now(UTC),
        )
        if self.is_resumed:
            self.record = resumed_record(self.out, self.record)
            self.records = stored_rounds(self.state)
            self._resumed_at = len(self.records)

    def configure(self, path: Path, broker_kind: str) -> CoordinatorConfig:
        """Writes the configuration of every process and the data of every agent.

        The state of a run that goes on, and the name of its federation, stay as they are.
        """
        folder, scenario = self.processes.folder, self.participants.scenario
        federation = folders.federation_of(folder) if self.is_resumed else None
        if federation is None:
            suffix = f"-{secrets.token_hex(3)}" if broker_kind == "external" else ""
            federation = scenario.name + suffix
        if not self.is_resumed:
            folders.clear(self.out)
        save_record(self.out, self.record)
        broker = folders.broker_keys(self.settings)
        changes = {"federation": federation, "broker": broker}
        plugins = plugin_paths(scenario, path)
        config = folders.write_coordinator(folder, self.participants, self.package, path, changes)
        for name, place in self._places().items():
            folders.write_agent(place, name, self.participants, federation, broker, plugins)
        return config

    def tell_beginning(self) -> None:
        """Notes what a person should know before the first round."""
        notes = record_notes(self.record)
        if self.is_resumed:
            notes.append(f"going on after {committed(self.records)} committed rounds")
        for line in notes:
            self.watcher.note(line)

    def _places(self) -> dict[str, Path]:
        """Returns the folder of each agent."""
        folder = self.processes.folder
        return {
            name: folder / name if not self.hosts else folder / _host(n % self.hosts) / name
            for n, name in enumerate(self.participants.rows)
        }

    def run(self, config: CoordinatorConfig) -> str:
        """Starts all processes, follows the rounds, ends all; returns why the federation ended.

        An interruption is such a reason; a second one, while processes end, is raised.
        """
        folder = self.processes.folder
        try:
            self.processes.start_coordinator(
                folder / folders.COORDINATOR / folders.COORDINATOR_FILE
            )
            names = list(self.participants.rows)
            for n in range(self.hosts):
                self.processes.start_host(_host(n), names[n :: self.hosts])
            for name in () if self.hosts else names:
                self.processes.start_agent(name, folder / name / AGENT_FILE)
            return self._watch(config)
        except KeyboardInterrupt:
            self.watcher.note("interrupted: ending all processes; interrupt again to end at once")
            return INTERRUPTED
        finally:
            self.processes.stop()

    def _watch(self, config: CoordinatorConfig) -> str:
        heard, waiting, lacking = time.monotonic(), False, ""
        minimum = max(config.cohort.at_least, config.round.minimum)
        availability = Availability(self.participants.asked, minimum)
        ended: set[str] = set()
        abandoned = AbandonedRounds()
        while True:
            try:
                event = self.processes.events.get(timeout=0.5)
            except queue.Empty:
                ended = self._note_ended(ended)
                availability.check(ended)
                silent_s = time.monotonic() - heard
                if lacking and silent_s > _LACKING_S:
                    self.watcher.note(f"waiting for agents: {lacking}")
                    lacking = ""
                self._check_stuck(ended, is_over=silent_s > patience_s(config, waiting=waiting))
                continue
            heard = time.monotonic()
            if event is None:
                coordinator = self.processes.coordinator
                line = coordinator.last_line() if coordinator else ""
                raise FleetError(f"the coordinator ended early: {line}")
            if event.event == "finished":
                self.processes.await_coordinator(_GOODBYE_S)
                return event.reason
            if event.event == "waiting":
                waiting, lacking = True, event.reason
                self.watcher.waiting(event.able, event.wanted)
            if event.event == "unavailable":
                note = availability.report(
                    event.agent_id, event.reason, is_transient=event.is_transient
                )
                if note:
                    self.watcher.note(note)
            if event.event == "data":
                self.odd_data.append(event.reason)
                self.watcher.note(f"data: {event.reason}")
            if event.event == "round":
                waiting, lacking = False, ""
                record = msgspec.json.decode(event.record, type=RoundRecord)
                self.records.append(record)
                self.watcher.round(record)
                abandoned.count(record)
                abandoned.check(record)

    def _note_ended(self, known: set[str]) -> set[str]:
        ended: set[str] = set()
        for child in self.processes.children:
            if child.running:
                continue
            if not known.issuperset(child.agents):
                code, line = child.process.returncode, child.last_line()
                what = "agent" if child.agents == (child.name,) else "process"
                self.watcher.note(f"{what} {child.name} ended with exit code {code}: {line}")
            ended.update(child.agents)
        return ended

    def _check_stuck(self, ended: set[str], *, is_over: bool) -> None:
        left = [name for name in self.participants.asked if name not in ended]
        if left and not (ended and is_over):
            return
        first = next(child for child in self.processes.children if not child.running)
        raise FleetError(
            f"{len(ended)} of {len(self.participants.rows)} agents have ended and no round can go "
            f"on; last log line of {first.name}: {first.last_line()} "
            f"(all logs: {self.processes.folder})"
        )

    def has_result(self) -> bool:
        """Returns whether a round was committed, once all processes have ended."""
        return bool(committed(stored_rounds(self.state)))

    def conclude(
        self, config: CoordinatorConfig, kind: str, reason: str, seconds: float
    ) -> dict[str, Any]:
        """Writes result and report, once all processes have ended."""
        # Of a run that went on the store has the earlier rounds, and it may have one more than was
        # told when the coordinator was ended.
        before = sum(record.seconds for record in self.records[: self._resumed_at])
        known = {record.round_id: record for record in (*self.records, *stored_rounds(self.state))}
        records = [known[number] for number in sorted(known)]
        ended = Ended(
            self.participants,
            self.package,
            config,
            records,
            self.out,
            runtime=runtimes(self.state),
            broker=kind,
            reason=reason,
            seconds=before + seconds,
            odd_data=self.odd_data,
            status="interrupted" if reason in (INTERRUPTED, FAILED) else "complete",
            record=self.record,
        )
        try:
            report = conclude(
                ended,
                lambda: best_theta(self.state, config, self.package.spec.size),
                self.watcher.working,
            )
        except FleetError as error:
            raise FleetError(f"{error}; logs: {self.processes.folder}") from error
        write_report(report, self.out)
        return report


def committed(records: Iterable[RoundRecord]) -> int:
    """Returns the number of rounds that were committed."""
    return sum(record.status == "committed" for record in records)


def patience_s(config: CoordinatorConfig, *, waiting: bool) -> float:
    """Returns the longest silence of the coordinator before a run with ended agents is stuck.

    Args:
        config: of the federation.
        waiting: its last event was that too few agents can take part; else a round may be open.
    """
    evaluation = config.evaluation
    round_s = config.round.deadline_s + (evaluation.deadline_s if evaluation.every else 0.0)
    return _STUCK_S + (0.0 if waiting else round_s)


def _host(number: int) -> str:
    return f"host-{number}"


def host_count(agents: int, wanted: int | None) -> int:
    """Returns the number of processes that host the agents; 0: one process for each agent.

    Args:
        agents: number of agents.
        wanted: number of processes asked for; None decides by the number of agents and cores.
    """
    if wanted is not None:
        return min(wanted, agents)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, agents) if agents > _OWN_PROCESSES else 0
