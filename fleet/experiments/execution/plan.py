"""Plan of an experiment: the cases of a grid file, each checked before the first run begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, did_you_mean
from fedge.yaml_config import load_config, located
from fleet.experiments.execution.grid import Grid, GridOptions
from fleet.experiments.execution.resolved import Resolved, resolve
from fleet.experiments.experiment import Case
from fleet.experiments.hooks.registry import HOOKS
from fleet.experiments.naming import case_name, folder_name, short_keys
from fleet.scenario import check_there, scenario_changes
from fleet.settings import in_both, overlap

#: More runs are a mistake in a list, most likely.
MAX_RUNS = 100_000
_FEDERATION = "federation."
#: Options of every run that are no changes of a scenario.
_OPTIONS = frozenset(GridOptions.__struct_fields__) - {"agents", "rounds"}
_CHANGE_IT = "change it there"
_PLACES = ("unseen_", "central_", "train_")


@dataclass(frozen=True)
class PlannedCase:
    """One case, checked.

    Attributes:
        case: as the index has it.
        path: of its scenario.
        changes: to the scenario, by full dotted key.
        resolved: its configuration.
    """

    case: Case
    path: Path
    changes: Mapping[str, Any]
    resolved: Resolved


@dataclass(frozen=True)
class Plan:
    """An experiment, checked.

    Attributes:
        name: of the experiment.
        grid: the file's content.
        options: of every run that are no changes of its scenario.
        varied: keys in which cases differ, `federation.` left out.
        cases: in the order of the grid.
        seeds: of each case.
    """

    name: str
    grid: Grid
    options: Mapping[str, Any]
    varied: tuple[str, ...]
    cases: tuple[PlannedCase, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class _Combination:
    """One combination before it is checked; `varied` by key without `federation.`."""

    name: str
    path: Path
    varied: Mapping[str, Any]


def make_plan(path: Path, changes: Mapping[str, Any] | None = None, seeds: int = 0) -> Plan:
    """Returns the experiment in a grid file, with every combination checked.

    Args:
        path: of the grid file.
        changes: to all runs, by dotted key; they replace the file's `set`.
        seeds: number of seeds; 0: the file's.

    Raises:
        ConfigError: the file or a combination is wrong; names the combination.
    """
    check_there(path)
    grid = load_config(path, Grid)
    # Before they are listed: a product of lists may not fit in memory.
    _check_number(_case_count(grid), seeds or grid.seed_count, path)
    for hook in grid.hooks:
        HOOKS.make(hook)  # raises where it is unknown, or what it needs is missing
    more = _full(changes or {}, "--set")
    own = _fixed(grid, path)
    if both := overlap(more, own):
        raise ConfigError(f"--set {both[0]}: {path} sets {both[1]}, in it; {_CHANGE_IT}")
    fixed = own | more
    combinations = list(_combinations(grid, path))
    numbers = tuple(range(seeds)) if seeds else grid.seed_list
    varied = tuple(dict.fromkeys(key for one in combinations for key in one.varied))
    _check_outside(more, varied, path)
    options = _options(grid, path)
    cases = tuple(_planned(one, varied, fixed, options, grid, path) for one in combinations)
    return Plan(grid.name or folder_name(path.stem), grid, options, varied, cases, numbers)


def _case_count(grid: Grid) -> int:
    lists = math.prod(len(values) for values in grid.grid.values())
    return len(grid.scenarios) * max(1, len(grid.cases)) * lists


def _check_number(cases: int, seeds: int, path: Path) -> None:
    if cases * seeds > MAX_RUNS:
        of_seeds = "one seed" if seeds == 1 else f"{_amount(seeds)} seeds"
        of_cases = "one case" if cases == 1 else f"{_amount(cases)} cases"
        raise ConfigError(
            f"{path}: {of_cases} with {of_seeds} each are more than {MAX_RUNS:,} runs: "
            "shorten a list"
        )


def _amount(number: int) -> str:
    """Returns a whole number with commas; a huge one by its power of ten."""
    return f"{number:,}" if number < 10**12 else f"more than 10^{int(math.log10(number))}"


def _check_outside(more: Mapping[str, Any], varied: Sequence[str], path: Path) -> None:
    """Raises ConfigError where `--set` changes what cases differ in."""
    if both := set(varied) & set(_bare(more)):
        raise ConfigError(f"--set {min(both)}: {path} varies this key; {_CHANGE_IT}")
    keys = list(scenario_changes(dict.fromkeys(varied)))
    if found := overlap(more, keys):
        raise ConfigError(f"--set {found[0]}: {path} varies {found[1]}, in it; {_CHANGE_IT}")
    if found := overlap(keys, more):
        raise ConfigError(f"--set {found[1]}: {path} varies {found[0]} as a whole; {_CHANGE_IT}")


def _fixed(grid: Grid, path: Path) -> dict[str, Any]:
    """Returns the changes to all runs, by full key."""
    options = {"agents": grid.options.agents, "federation.rounds": grid.options.rounds}
    chosen = {key: value for key, value in options.items() if value is not None}
    _refuse_overlap(grid.changes, f"{path}: set")
    found = _full(grid.changes, f"{path}: set")
    if both := in_both(found, chosen):
        key = _bare_key(both[1])
        raise ConfigError(f"{path}: options.{key} and {key} of `set` are one setting: give one")
    return found | chosen


def _combinations(grid: Grid, path: Path) -> Iterator[_Combination]:
    """Yields scenario × cases × grid, the last key of the grid fastest."""
    lists = _bare(_full(grid.grid, f"{path}: grid"))
    fixed = _fixed(grid, path)
    _refuse_overlap(lists, f"{path}: grid")
    _check_fixed(fixed, lists, f"{path}: grid")
    short, taken = short_keys(lists), set[str]()
    for scenario, given in itertools.product(grid.scenarios, grid.cases or ({},)):
        label, own = _named_case(given, path)
        if both := set(own) & set(lists):
            raise ConfigError(f"{path}: case {label}: {min(both)} is varied by the grid too")
        where = f"{path}: case {label}"
        _check_fixed(fixed, own, where)
        _refuse_overlap([*own, *lists], where)
        labels = [Path(scenario).stem] * (len(grid.scenarios) > 1) + [label] * bool(label)
        for values in itertools.product(*lists.values()):
            picked = dict(zip(lists, values, strict=True))
            parts = labels + [case_name(picked, short)] * bool(picked)
            name = folder_name(",".join(parts) or Path(scenario).stem)
            if name in taken:
                raise ConfigError(f"{path}: two cases are named {name!r}: no name, no value twice")
            taken.add(name)
            yield _Combination(name, located(scenario, path.parent), own | picked)


def _named_case(given: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """Returns name and changes of an entry of `cases`."""
    if not given:
        return "", {}
    name = given.get("name")
    if not isinstance(name, str) or folder_name(name) != name:
        raise ConfigError(
            f"{path}: cases: name: expected letters, digits and . _ = - for the name of a folder, "
            f"got {name!r}"
        )
    changes = {key: value for key, value in given.items() if key != "name"}
    return name, _bare(_full(changes, f"{path}: case {name}"))


def _full(changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns changes by full key; errors begin with `where`."""
    if given := [key for key in changes if key in _OPTIONS]:
        raise ConfigError(
            f"{where}: {given[0]}: no key of a scenario: give it in `options`, for all runs of the "
            "grid; to compare two, run two grids"
        )
    try:
        found = scenario_changes(changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if "seed" in found:
        raise ConfigError(f"{where}: seed: list the seeds in `seeds`, which every case is run with")
    return found


def _refuse_overlap(keys: Iterable[str], where: str) -> None:
    """Raises ConfigError where one of the keys lies below another: one would undo the other."""
    full = list(_full(dict.fromkeys(keys), where))
    if both := overlap(full, full):
        raise ConfigError(
            f"{where}: {_bare_key(both[1])} lies in {_bare_key(both[0])}: give one of them, or "
            f"{_bare_key(both[1])} within each value of {_bare_key(both[0])}"
        )


def _check_fixed(fixed: Mapping[str, Any], varied: Iterable[str], where: str) -> None:
    """Raises ConfigError where `set` has a key that is varied, or one below it: it would be lost.

    The other way round is fine: `set: {algorithm: fedprox}`, and a grid of `algorithm.mu`.
    """
    keys = _full(dict.fromkeys(varied), where)
    if both := in_both(fixed, keys):
        raise ConfigError(
            f"{where}: {_bare_key(both[1])} is set for all runs too, by `set` or `options`: leave "
            "it out there, or here"
        )
    if both := overlap(keys, fixed):
        raise ConfigError(
            f"{where}: {_bare_key(both[0])} would replace {_bare_key(both[1])} of `set`: give it "
            f"within each value of {_bare_key(both[0])}"
        )


def _bare(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns changes by the keys that tables show."""
    return {_bare_key(key): value for key, value in changes.items()}


def _bare_key(key: str) -> str:
    return key.removeprefix(_FEDERATION)


def _planned(
    one: _Combination,
    varied: Sequence[str],
    fixed: Mapping[str, Any],
    options: Mapping[str, Any],
    grid: Grid,
    path: Path,
) -> PlannedCase:
    try:
        changes = {**fixed, **scenario_changes(one.varied)}
        resolved = resolve(one.path, changes, grid.engine, options)
    except ConfigError as error:
        raise ConfigError(f"{path}: case {one.name}: {error}") from error
    if grid.target:
        _check_metric(grid.target.metric, resolved, f"{path}: target.metric")
    settings = {
        key: one.varied[key] if key in one.varied else resolved.value(key) for key in varied
    }
    case = Case(name=one.name, scenario=resolved.scenario.name, settings=settings)
    return PlannedCase(case, one.path, changes, resolved)


def _options(grid: Grid, path: Path) -> dict[str, Any]:
    """Returns the options that are no changes of a scenario, with absolute paths."""
    options = grid.options
    found: dict[str, Any] = {}
    for key, choice in (("mode", options.mode), ("kernel", options.kernel)):
        if choice != "auto":
            found[key] = choice
    for key, file in (("faults", options.faults), ("profiles", options.profiles)):
        if file is not None:
            found[key] = str(located(file, path.parent).resolve())
    if options.signed:
        found["signed"] = True
    if options.hosts is not None:
        found["hosts"] = options.hosts
    return found


def _check_metric(metric: str, resolved: Resolved, where: str) -> None:
    bare = metric
    for start in _PLACES:
        bare = bare.removeprefix(start)
    if bare not in resolved.metrics:
        hint = did_you_mean(bare, resolved.metrics)
        raise ConfigError(
            f"{where}: {resolved.scenario.name} has no metric {bare!r}: {hint}"
            f"it has {', '.join(resolved.metrics)}"
        )
