"""Many seeds: each a small random federation with random faults, every promise checked.

A seed that fails is run again with one fault less at a time, as long as it still fails: what is
left is what it takes.
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
from fleet.virtual.shells import quiet
from fleet.virtual.simulate import SETTLE_S, SimulationOptions, make_setting
from fleet.virtual.simulated_worker import Workbench
from fleet.virtual.simulation import Setting, Simulation, skew_of
from models.zoo import load_zoo

#: Tries at leaving a fault out, in all.
_SHRINK_TRIES = 200


@dataclass(frozen=True)
class Outcome:
    """What came of a seed.

    Attributes:
        seed: it was.
        problem: in words; empty when all went well.
        last: the entries before the problem.
        events: handled by all machines.
        checks: made.
        virtual_s: until the federation had finished.
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
) -> Outcome:
    """Simulate one seed.

    Args:
        seed: of federation, faults and everything random.
        faults: instead of those that the seed draws.
        observe: is told of every entry.
        scenario: whose federation to try, instead of one that the seed draws.
        signed: the coordinator signs, and agents ask for it.
    """
    setting = _setting(seed, faults, scenario)
    invariants = Invariants(setting.config, setting.package, seed)
    observers: list[Observer] = [invariants] if observe is None else [observe, invariants]
    setting = dataclasses.replace(setting, observers=observers, signed=signed)
    simulation = Simulation(setting)
    invariants.watch(simulation)
    problem, last = "", tuple[str, ...]()
    try:
        simulation.run(settle_s=SETTLE_S)
        invariants.at_rest(simulation)
    except InvariantViolated as violated:
        problem, last = str(violated), violated.last
    except FederationError as error:
        problem, last = f"seed {seed}: {error}", invariants.last_lines()
    except Exception:  # noqa: BLE001  whatever a machine raises is what the sweep looks for
        problem, last = f"seed {seed}: {traceback.format_exc()}", invariants.last_lines()
    return Outcome(
        seed, problem, last, simulation.world.events, invariants.checks, simulation.ended_s
    )


def _setting(seed: int, faults: FaultPlan | None, scenario: Path | None) -> Setting:
    if scenario is None:
        return draw_setting(seed, load_zoo("house_price"), faults, _workbench(), [])
    drawn = _scenario_setting(scenario)
    names = [device.agent_id for device in drawn.devices]
    plan = faults or draw_faults(seed, names)
    devices = [
        dataclasses.replace(device, skew=skew_of(plan, device.agent_id)) for device in drawn.devices
    ]
    return dataclasses.replace(
        drawn, seed=seed, faults=plan, devices=devices, workbench=_workbench()
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
) -> Iterator[Outcome]:
    """The outcome of every seed, in order; with more than one job, in processes of their own."""
    trial = partial(try_seed, faults=faults, scenario=scenario, signed=signed)
    if jobs == 1:
        yield from map(trial, seeds)
        return
    # Spawned, not forked: interpreters that were loaded before may hold locks and threads.
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=quiet) as pool:
        yield from pool.imap(trial, seeds, chunksize=8)


def plan_of(seed: int, scenario: Path | None = None) -> FaultPlan:
    """The faults that a seed draws."""
    return _setting(seed, None, scenario).faults


def shrink(
    seed: int, faults: FaultPlan, scenario: Path | None = None, signed: bool = False
) -> FaultPlan:
    """The plan with every fault left out without which the seed still fails."""
    tries = 0
    smaller = True
    while smaller and tries < _SHRINK_TRIES:
        smaller = False
        for candidate in without_one(faults):
            tries += 1
            if try_seed(seed, candidate, scenario=scenario, signed=signed).problem:
                faults, smaller = candidate, True
                break
    return faults


def without_one(faults: FaultPlan) -> Iterator[FaultPlan]:
    """The plan without one of its faults, for each of them."""
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
    """The plan as a file for `--faults`, without what it leaves as it is."""
    nothing = FaultPlan()
    said = {
        name: msgspec.to_builtins(getattr(faults, name))
        for name in faults.__struct_fields__
        if getattr(faults, name) != getattr(nothing, name)
    }
    return msgspec.yaml.encode(said).decode()


def write_trace(
    seed: int, faults: FaultPlan, path: Path, scenario: Path | None = None, signed: bool = False
) -> Outcome:
    """Every entry of a seed's run."""
    with path.open("w", encoding="utf-8") as file:
        return try_seed(seed, faults, TraceFile(file), scenario, signed)


_SHARED: list[Workbench] = []


def _workbench() -> Workbench:
    """One for the process: loading a program costs more than many small federations."""
    if not _SHARED:
        _SHARED.append(Workbench())
    return _SHARED[0]
