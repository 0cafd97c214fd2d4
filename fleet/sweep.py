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
from functools import partial
from pathlib import Path

import msgspec

from fleet.drawing import draw_agents, draw_faults, draw_setting
from fleet.faults import FaultPlan
from fleet.history import Entry, Observer, trace_line
from fleet.invariants import Invariants, InvariantViolated
from fleet.simulate import SETTLE_S
from fleet.simulation import Simulation
from fleet.workbench import Workbench
from models.errors import FederationError
from models.package import ModelPackage
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
    package: ModelPackage | None = None,
) -> Outcome:
    """Simulate one seed.

    Args:
        seed: of federation, faults and everything random.
        faults: instead of those that the seed draws.
        observe: is told of every entry.
        package: the model; house_price when not given.
    """
    package = package or load_zoo("house_price")
    setting = draw_setting(seed, package, faults, _workbench(), [])
    invariants = Invariants(setting.config, package, seed)
    observers: list[Observer] = [invariants] if observe is None else [observe, invariants]
    simulation = Simulation(dataclasses.replace(setting, observers=observers))
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


def sweep(seeds: range, jobs: int, faults: FaultPlan | None = None) -> Iterator[Outcome]:
    """The outcome of every seed, in order."""
    if jobs == 1:
        yield from map(partial(try_seed, faults=faults), seeds)
        return
    # Spawned, not forked: interpreters that were loaded before may hold locks and threads.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(partial(try_seed, faults=faults), seeds, chunksize=8)


def plan_of(seed: int) -> FaultPlan:
    """The faults that a seed draws."""
    return draw_faults(seed, draw_agents(seed))


def shrink(seed: int, faults: FaultPlan) -> FaultPlan:
    """The plan with every fault left out without which the seed still fails."""
    tries = 0
    smaller = True
    while smaller and tries < _SHRINK_TRIES:
        smaller = False
        for candidate in without_one(faults):
            tries += 1
            if try_seed(seed, candidate).problem:
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


def write_trace(seed: int, faults: FaultPlan | None, path: Path) -> None:
    """Every entry of a seed's run."""
    with path.open("w", encoding="utf-8") as file:
        try_seed(seed, faults, lambda entry: print(trace_line(entry), file=file))


_SHARED: list[Workbench] = []


def _workbench() -> Workbench:
    """One for the process: loading a program costs more than many small federations."""
    if not _SHARED:
        _SHARED.append(Workbench())
    return _SHARED[0]
