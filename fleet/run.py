"""Run a scenario for real: a broker, a coordinator process, processes with one agent or many."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
import numpy as np

from broker.link.link import LinkDown, LinkUp
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings
from broker.local.broker import LocalBroker
from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.report import decline_lines
from coordinator.result import RESULT_FOLDER
from coordinator.store import Store
from fedge.errors import ConfigError, FleetError, LinkError
from fedge.yaml_config import load_config
from fleet import folders
from fleet.availability import Attendance
from fleet.baselines import check_baselines
from fleet.host import AGENT_FILE
from fleet.participants import Cast, make_cast
from fleet.processes import Processes
from fleet.report import Ended, conclude, write_report
from fleet.retained_cleanup import clear_retained
from fleet.scenario import load_scenario, plugin_paths, scenario_package
from learning.vector.parameters import F32
from models.package.package import INITIAL_FILE, ModelPackage

log = logging.getLogger(__name__)

#: The coordinator says nothing for so long while agents have ended and no round is open: the run
#: is stuck.
_STUCK_S = 90.0
_GOODBYE_S = 10.0
#: A service would go on for ever; in a run so many abandoned rounds in a row mean it cannot work.
_ABANDONED = 5
#: More agents than this share processes: an interpreter with numpy and the runtime takes 40 MB and
#: half a second of a core to start.
_OWN_PROCESSES = 24


class Watcher(Protocol):
    """Who shows a run while it goes on."""

    def begin(self, cast: Cast, config: CoordinatorConfig, broker: str) -> None:
        """All processes are started."""

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""

    def waiting(self, able: int, wanted: int) -> None:
        """A round cannot begin yet."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def baseline(self, what: str, done: int, of: int) -> None:
        """A model to compare with was trained."""


@dataclass(frozen=True)
class RunOptions:
    """What the command line changes about a scenario.

    Attributes:
        agents: so many only.
        rounds: so many only.
        broker: auto, mosquitto, embedded, mqtt://host:port, or a file with the keys of `broker`.
        hosts: so many processes that host the agents; 0 gives each agent its own; None decides by
            their number.
        out: folder for report, logs and the trained model; an earlier run's are removed from it.
    """

    out: Path
    agents: int | None = None
    rounds: int | None = None
    broker: str = "auto"
    hosts: int | None = None


def run_scenario(path: Path, options: RunOptions, watcher: Watcher) -> dict[str, Any]:
    """Runs it and writes the report.

    Raises:
        ConfigError: scenario, data, model or options are unusable, or too few agents can take part.
        LinkError: the broker named by its address cannot be reached.
        FleetError: the run ended without a result.
    """
    scenario = load_scenario(path)
    package = scenario_package(scenario, path)
    check_baselines(scenario.baselines, package.spec, path)
    cast = make_cast(scenario, path, package.spec, options.agents)
    with _broker(options.broker) as (settings, kind):
        name = scenario.name if kind != "external" else f"{scenario.name}-{secrets.token_hex(3)}"
        run = _Run(package, cast, options, settings, watcher)
        config = run.configure(path, name)
        watcher.begin(cast, config, f"{kind} on {settings.host}:{settings.port}")
        started = time.monotonic()
        try:
            reason = run.play(config)
        finally:
            if kind == "external":
                _tidy_up(settings, name, watcher)
        seconds = time.monotonic() - started
    return run.conclude(config, kind, reason, seconds)


def _tidy_up(settings: BrokerSettings, federation: str, watcher: Watcher) -> None:
    try:
        clear_retained(settings, federation)
    except LinkError as error:  # no reason to throw the result away
        watcher.note(f"what {federation} left at the broker is still there: {error}")


class _Run:
    """One run's folder and processes."""

    def __init__(
        self,
        package: ModelPackage,
        cast: Cast,
        options: RunOptions,
        settings: BrokerSettings,
        watcher: Watcher,
    ) -> None:
        self.package = package
        self.cast = cast
        self.out = options.out
        self.rounds = options.rounds
        self.hosts = host_count(len(cast.rows), options.hosts)
        self.settings = settings
        self.watcher = watcher
        self.processes = Processes(options.out / "processes")
        self.records: list[RoundRecord] = []

    def configure(self, path: Path, federation: str) -> CoordinatorConfig:
        """Write every process its configuration, and the agents their data."""
        folder = self.processes.folder
        folders.clear(self.out)
        broker = folders.broker_keys(self.settings)
        changes = {"federation": federation, "broker": broker}
        plugins = plugin_paths(self.cast.scenario, path)
        config = folders.write_coordinator(
            folder, self.cast, self.package, path, changes, self.rounds
        )
        for name, place in self._places().items():
            folders.write_agent(place, name, self.cast, federation, broker, plugins)
        return config

    def _places(self) -> dict[str, Path]:
        """The folder of each agent."""
        folder = self.processes.folder
        return {
            name: folder / name if not self.hosts else folder / _host(n % self.hosts) / name
            for n, name in enumerate(self.cast.rows)
        }

    def play(self, config: CoordinatorConfig) -> str:
        """Start everything, watch the rounds, end everything; returns why it ended."""
        folder = self.processes.folder
        try:
            self.processes.start_coordinator(
                folder / folders.COORDINATOR / folders.COORDINATOR_FILE
            )
            names = list(self.cast.rows)
            for n in range(self.hosts):
                self.processes.start_host(_host(n), names[n :: self.hosts])
            for name in () if self.hosts else names:
                self.processes.start_agent(name, folder / name / AGENT_FILE)
            return self._watch(config)
        finally:
            self.processes.stop()

    def _watch(self, config: CoordinatorConfig) -> str:
        heard, waiting = time.monotonic(), False
        least = max(config.cohort.at_least, config.round.minimum)
        attendance = Attendance(self.cast.asked, least)
        gone: set[str] = set()
        while True:
            try:
                event = self.processes.events.get(timeout=0.5)
            except queue.Empty:
                gone = self._note_the_dead(gone)
                attendance.check(gone)
                silent_s = time.monotonic() - heard
                self._check_stuck(gone, is_over=silent_s > patience_s(config, waiting=waiting))
                continue
            heard = time.monotonic()
            if event is None:
                coordinator = self.processes.coordinator
                words = coordinator.last_words() if coordinator else ""
                raise FleetError(f"the coordinator ended early: {words}")
            if event.event == "finished":
                self.processes.await_coordinator(_GOODBYE_S)
                return event.reason
            if event.event == "waiting":
                waiting = True
                self.watcher.waiting(event.able, event.wanted)
            if event.event == "unavailable":
                why, is_transient = event.reason, event.is_transient
                if note := attendance.cannot(event.agent_id, why, is_transient=is_transient):
                    self.watcher.note(note)
            if event.event == "round":
                waiting = False
                record = msgspec.json.decode(event.record, type=RoundRecord)
                self.records.append(record)
                self.watcher.round(record)
                self._check_abandoned()

    def _check_abandoned(self) -> None:
        last = self.records[-_ABANDONED:]
        if len(last) == _ABANDONED and all(record.status == "abandoned" for record in last):
            raise FleetError(
                f"{_ABANDONED} rounds in a row were abandoned: {why_abandoned(last[-1])} "
                f"(all logs: {self.processes.folder})"
            )

    def _note_the_dead(self, known: set[str]) -> set[str]:
        dead: set[str] = set()
        for child in self.processes.children:
            if child.running:
                continue
            if not known.issuperset(child.agents):
                code, words = child.process.returncode, child.last_words()
                what = "agent" if child.agents == (child.name,) else "process"
                self.watcher.note(f"{what} {child.name} ended with {code}: {words}")
            dead.update(child.agents)
        return dead

    def _check_stuck(self, gone: set[str], *, is_over: bool) -> None:
        left = [name for name in self.cast.asked if name not in gone]
        if left and not (gone and is_over):
            return
        first = next(child for child in self.processes.children if not child.running)
        raise FleetError(
            f"{len(gone)} of {len(self.cast.rows)} agents have ended and the rounds cannot go on; "
            f"{first.name} said: {first.last_words()} (all logs: {self.processes.folder})"
        )

    def conclude(
        self, config: CoordinatorConfig, kind: str, reason: str, seconds: float
    ) -> dict[str, Any]:
        """Result and report, once all processes are gone."""
        state = self.processes.folder / "coordinator" / "state"
        ended = Ended(
            self.cast,
            self.package,
            config,
            self.records,
            self.out,
            runtime=_runtime(state),
            broker=kind,
            reason=reason,
            seconds=seconds,
        )
        try:
            report = conclude(ended, lambda: _trained_theta(state), self.watcher.baseline)
        except FleetError as error:
            raise FleetError(f"{error}; logs: {self.processes.folder}") from error
        write_report(report, self.out)
        return report


def _trained_theta(state: Path) -> F32:
    theta: F32 = np.load(state / RESULT_FOLDER / INITIAL_FILE, allow_pickle=False)
    return theta


def why_abandoned(record: RoundRecord) -> str:
    """What kept updates from counting, in words."""
    refused = [f"{n} refused ({reason})" for reason, n in sorted(record.refusals.items())]
    return "; ".join([*decline_lines(record), *refused]) or "too few answered in time"


def patience_s(config: CoordinatorConfig, *, waiting: bool) -> float:
    """How long the coordinator may say nothing once agents have ended.

    Args:
        config: of the federation.
        waiting: its last word was that too few agents are here; else a round may be open.
    """
    evaluation = config.evaluation
    round_s = config.round.deadline_s + (evaluation.deadline_s if evaluation.every else 0.0)
    return _STUCK_S + (0.0 if waiting else round_s)


def _runtime(state: Path) -> str:
    store = Store.open_existing(state)
    try:
        runtimes = {agent.status.runtime for agent in store.agents()} - {""}
    finally:
        store.close()
    return ", ".join(sorted(runtimes))


@contextlib.contextmanager
def _broker(choice: str) -> Iterator[tuple[BrokerSettings, str]]:
    if choice in ("auto", "mosquitto", "embedded"):
        with LocalBroker(choice) as broker:  # type: ignore[arg-type]  # narrowed by the line above
            yield broker.settings, broker.kind
        return
    settings = _external(choice)
    _check_reachable(settings)
    yield settings, "external"


def _external(choice: str) -> BrokerSettings:
    path = Path(choice)
    if path.suffix not in (".yaml", ".yml"):
        return parse_address(choice)
    return load_config(path, BrokerSettings).located(path.absolute().parent)


def parse_address(address: str) -> BrokerSettings:
    """The settings for `mqtt://host:port`.

    Raises:
        ConfigError: not such an address.
    """
    parts = urlsplit(address)
    try:
        port = parts.port or 1883
    except ValueError as error:
        raise ConfigError(f"--broker {address!r}: {error}") from error
    if parts.scheme != "mqtt" or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            f"--broker {address!r}: use auto, mosquitto, embedded, mqtt://host:port or FILE.yaml"
        )
    return BrokerSettings(host=parts.hostname, port=port)


def _check_reachable(settings: BrokerSettings) -> None:
    link = MqttLink(settings, client_id=f"fedge-check-{secrets.token_hex(4)}", session_expiry_s=0)
    try:
        link.open()
        match link.poll(settings.connect_timeout_s + 1):
            case LinkUp():
                return
            case LinkDown(reason):
                raise LinkError(reason)
            case _:
                raise LinkError(f"broker {settings.address} does not answer")
    finally:
        link.close()


def _host(number: int) -> str:
    return f"host-{number}"


def host_count(agents: int, wanted: int | None) -> int:
    """Processes that host the agents; 0: each has one of its own.

    Args:
        agents: in all.
        wanted: None leaves it to the number of agents and cores.
    """
    if wanted is not None:
        return min(wanted, agents)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, agents) if agents > _OWN_PROCESSES else 0
