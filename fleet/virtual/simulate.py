"""Run a scenario in virtual time: the machines of `fleet run`, without broker, clock or waiting."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coordinator.config import CoordinatorConfig
from coordinator.evaluation import central_measure
from fedge.errors import ConfigError
from fedge.yaml_config import load_config, located
from fleet.baselines import check_baselines
from fleet.folders import make_out
from fleet.participants import Cast, make_cast
from fleet.report import REPORT_FILE, Ended, conclude, write_report
from fleet.run import Watcher
from fleet.scenario import (
    Scenario,
    coordinator_config,
    fleet_changes,
    load_scenario,
    scenario_package,
)
from fleet.virtual.event_trace import TraceFile
from fleet.virtual.faults import COORDINATOR, FaultPlan
from fleet.virtual.invariants import Invariants
from fleet.virtual.profiles import Profiles, load_profiles
from fleet.virtual.simulation import Setting, Simulation, make_device
from models.package.package import ModelPackage
from models.runtime.interpreters import find_runtime

log = logging.getLogger(__name__)

TRACE_FILE = "trace.jsonl"
#: Virtual time after the end for receipts and plans that are still under way.
SETTLE_S = 120.0


@dataclass(frozen=True)
class SimulationOptions:
    """What the command line changes about a scenario.

    Attributes:
        out: folder for report, trace and the trained model.
        agents: so many only.
        rounds: so many only.
        seed: of everything random but the learning, which has the federation's own.
        faults: file with a fault plan; None: nothing goes wrong.
        profiles: file with device profiles; None: those that ship.
        trace: write trace.jsonl.
        check: watch the invariants.
        limit_s: of virtual time; None: as long as it may reasonably take.
        signed: the coordinator signs, and agents ask for it.
    """

    out: Path
    agents: int | None = None
    rounds: int | None = None
    seed: int = 0
    faults: Path | None = None
    profiles: Path | None = None
    trace: bool = True
    check: bool = True
    limit_s: float | None = None
    signed: bool = False


def simulate_scenario(path: Path, options: SimulationOptions, watcher: Watcher) -> dict[str, Any]:
    """Simulates it and writes the report.

    Raises:
        ConfigError: scenario, data, model, faults, profiles or options are unusable.
        FleetError: the run ended without a result, or did not end.
        InvariantViolated: a promise of the protocol was broken.
    """
    _, cast, setting = make_setting(path, options)
    with _observed(setting, options) as observed:
        simulation = Simulation(observed)
        for observer in observed.observers:
            if isinstance(observer, Invariants):
                observer.watch(simulation)
        simulation.coordinator.on_round = watcher.round
        watcher.begin(cast, setting.config, f"in memory, seed {options.seed}")
        reason = simulation.run(options.limit_s, SETTLE_S)
        for observer in observed.observers:
            if isinstance(observer, Invariants):
                observer.at_rest(simulation)
    return _conclude(simulation, cast, reason, options, watcher)


def make_setting(path: Path, options: SimulationOptions) -> tuple[Scenario, Cast, Setting]:
    """What the scenario and the options describe; raises as `simulate_scenario`."""
    scenario = load_scenario(path)
    package = scenario_package(scenario, path)
    check_baselines(scenario.baselines, package.spec, path)
    cast = make_cast(scenario, path, package.spec, options.agents)
    if COORDINATOR in cast.rows:
        raise ConfigError(f"{path}: no agent may be called {COORDINATOR!r}")
    changes = fleet_changes(scenario, len(cast.asked), options.rounds)
    config = coordinator_config(scenario, path, **changes)
    profiles = load_profiles(options.profiles) if options.profiles else load_profiles()
    faults = load_config(options.faults, FaultPlan) if options.faults else FaultPlan()
    setting = _setting(path, config, package, cast, profiles, faults, options.seed)
    return scenario, cast, replace(setting, signed=options.signed)


def _setting(
    path: Path,
    config: CoordinatorConfig,
    package: ModelPackage,
    cast: Cast,
    profiles: Profiles,
    faults: FaultPlan,
    seed: int,
) -> Setting:
    dealt = profiles.assign(list(cast.rows), seed)
    devices = [
        make_device(
            name,
            config.federation,
            dealt[name],
            faults,
            dataset=cast.dataset(name),
            phases=cast.phases(name),
            statistics=cast.statistics(name),
        )
        for name in cast.rows
    ]
    data = config.evaluation.data
    return Setting(
        config=config,
        package=package,
        devices=devices,
        seed=seed,
        faults=faults,
        start_hour=profiles.start_hour,
        measure=None if data is None else central_measure(located(data, path.parent), package),
    )


@contextmanager
def _observed(setting: Setting, options: SimulationOptions) -> Iterator[Setting]:
    """The setting with its observers; the trace is open meanwhile."""
    make_out(options.out)
    (options.out / REPORT_FILE).unlink(missing_ok=True)
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
    cast: Cast,
    reason: str,
    options: SimulationOptions,
    watcher: Watcher,
) -> dict[str, Any]:
    setting, coordinator = simulation.setting, simulation.coordinator
    ended = Ended(
        cast,
        setting.package,
        setting.config,
        coordinator.store.rounds(),
        options.out,
        runtime=find_runtime(None)[1],
        broker="memory",
        reason=reason,
        seconds=simulation.ended_s,
    )
    report = conclude(ended, lambda: coordinator.coordinator.progress.theta, watcher.baseline)
    report |= {"seed": setting.seed, "virtual_seconds": simulation.ended_s}
    write_report(report, options.out)
    return report
