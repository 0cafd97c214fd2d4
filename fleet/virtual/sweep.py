"""Sweep over many seeds: each a small random federation with random faults, all invariants checked.

A seed that fails is run again with one fault less at a time, as long as it still fails: the
remaining faults are those that it needs to fail.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import msgspec

from fedge.errors import FederationError
from fleet.virtual.event_trace import Entry, Observer, TraceFile
from fleet.virtual.faults import FaultPlan
from fleet.virtual.invariants import Invariants, InvariantViolated
from fleet.virtual.scenario_generator import draw_faults, draw_setting
from fleet.virtual.shells import silence_logs
from fleet.virtual.simulate import SETTLE_S, SimulationOptions, make_setting
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Setting, Simulation, skew_of
from models.zoo import load_zoo

#: Limit of runs with a fault left out.
_SHRINK_TRIES = 200

#: Makes another setting of one that was drawn.
Change = Callable[[Setting], Setting]


@dataclass(frozen=True)
class Outcome:
    """Outcome of one seed.

    Attributes:
        seed: of the run.
        problem: violation or error, in words; empty when there was none.
        last: trace lines before the problem.
        events: number of events handled by all machines.
        checks: number of checks.
        virtual_s: virtual time until the federation had finished.
    """

    seed: int
    problem: str = ""
    last: tuple[str, ...] = ()
    events: int = 0
    checks: int = 0
    virtual_s: float = 0.0


def try_seed(
    seed: int,
    faults: FaultPlan | None = None,
    observe: Callable[[Entry], None] | None = None,
    scenario: Path | None = None,
    signed: bool = False,
    change: Change | None = None,
) -> Outcome:
    """Simulates one seed and returns its outcome.

    Args:
        seed: of federation, faults and everything random.
        faults: fault plan; None: drawn from the seed.
        observe: called with every entry.
        scenario: with the federation to try; None: drawn from the seed.
        signed: the coordinator signs, and agents require its signature.
        change: of the setting, before it is simulated.
    """
    setting = _setting(seed, faults, scenario)
    if change is not None:
        setting = change(setting)
    invariants = Invariants(setting.config, setting.package, seed)
    observers: list[Observer] = [invariants] if observe is None else [observe, invariants]
    setting = dataclasses.replace(setting, observers=observers, signed=signed)
    simulation = Simulation(setting)
    invariants.watch(simulation)
    problem, last = "", tuple[str, ...]()
    try:
        simulation.run(settle_s=SETTLE_S)
        invariants.check_quiescence(simulation)
    except InvariantViolated as violated:
        problem, last = str(violated), violated.last
    except FederationError as error:
        problem, last = f"seed {seed}: {error}", invariants.last_lines()
    except Exception:  # noqa: BLE001  the sweep looks for any error of a machine
        problem, last = f"seed {seed}: {traceback.format_exc()}", invariants.last_lines()
    return Outcome(
        seed, problem, last, simulation.world.events, invariants.checks, simulation.ended_s
    )


def _setting(seed: int, faults: FaultPlan | None, scenario: Path | None) -> Setting:
    if scenario is None:
        return draw_setting(seed, load_zoo("house_price"), faults, _shared_worker(), [])
    drawn = _scenario_setting(scenario)
    names = [device.agent_id for device in drawn.devices]
    plan = faults or draw_faults(seed, names)
    devices = [
        dataclasses.replace(device, skew=skew_of(plan, device.agent_id)) for device in drawn.devices
    ]
    return dataclasses.replace(
        drawn, seed=seed, faults=plan, devices=devices, worker=_shared_worker()
    )


@lru_cache(maxsize=1)
def _scenario_setting(scenario: Path) -> Setting:
    return make_setting(scenario, SimulationOptions(out=Path()))[2]


def sweep(
    seeds: range,
    jobs: int,
    faults: FaultPlan | None = None,
    scenario: Path | None = None,
    signed: bool = False,
    change: Change | None = None,
) -> Iterator[Outcome]:
    """Yields the outcome of every seed, in order; more than one job run in their own processes."""
    trial = partial(try_seed, faults=faults, scenario=scenario, signed=signed, change=change)
    if jobs == 1:
        yield from map(trial, seeds)
        return
    # Spawned, not forked: interpreters that are loaded already may hold locks and threads.
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=silence_logs) as pool:
        yield from pool.imap(trial, seeds, chunksize=8)


def plan_of(seed: int, scenario: Path | None = None, change: Change | None = None) -> FaultPlan:
    """Returns the fault plan of a seed."""
    setting = _setting(seed, None, scenario)
    return (setting if change is None else change(setting)).faults


def shrink(
    seed: int,
    faults: FaultPlan,
    scenario: Path | None = None,
    signed: bool = False,
    change: Change | None = None,
) -> FaultPlan:
    """Returns the plan without the faults that the seed does not need to fail."""
    tries = 0
    smaller = True
    while smaller and tries < _SHRINK_TRIES:
        smaller = False
        for candidate in without_one(faults):
            tries += 1
            if try_seed(seed, candidate, None, scenario, signed, change).problem:
                faults, smaller = candidate, True
                break
    return faults


def without_one(faults: FaultPlan) -> Iterator[FaultPlan]:
    """Yields the plan without one of its faults, for each of them."""
    nothing = FaultPlan()
    for name in faults.__struct_fields__:
        value, none = getattr(faults, name), getattr(nothing, name)
        if value == none or name == "until_s":
            continue
        if isinstance(value, tuple) and len(value) > 1:
            for index in range(len(value)):
                fewer = value[:index] + value[index + 1 :]
                yield msgspec.structs.replace(faults, **{name: fewer})
        else:
            yield msgspec.structs.replace(faults, **{name: none})


def plan_text(faults: FaultPlan) -> str:
    """Returns the plan as text of a file for `--faults`, without default values."""
    nothing = FaultPlan()
    changed = {
        name: msgspec.to_builtins(getattr(faults, name))
        for name in faults.__struct_fields__
        if getattr(faults, name) != getattr(nothing, name)
    }
    return msgspec.yaml.encode(changed).decode()


def write_trace(
    seed: int,
    faults: FaultPlan,
    path: Path,
    scenario: Path | None = None,
    signed: bool = False,
    change: Change | None = None,
) -> Outcome:
    """Writes every entry of a seed's run to a trace file."""
    with path.open("w", encoding="utf-8") as file:
        return try_seed(seed, faults, TraceFile(file), scenario, signed, change)


_SHARED: list[SimulatedWorker] = []


def _shared_worker() -> SimulatedWorker:
    """Returns the worker of this process: loading a program costs more than a federation."""
    if not _SHARED:
        _SHARED.append(SimulatedWorker())
    return _SHARED[0]
