"""Cases against a baseline, paired by seed: same data, same partition, same initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coordinator.records.records import falls
from fedge.errors import ConfigError
from fleet.experiments.estimates import LEVEL, Difference, paired
from fleet.experiments.experiment import Case, Experiment, Target
from fleet.experiments.results import Report, Which
from fleet.experiments.table import SPENT


@dataclass(frozen=True)
class Compared:
    """One figure of one case against the baseline.

    Attributes:
        case: its name.
        figure: a metric of the best version, or of the last round; or rounds or bytes to the target
            (`SPENT`).
        difference: of the pairs; None when there is none.
        pairs: seeds of both.
        censored: seeds with which one of both never reached the target, or has no value.
    """

    case: str
    figure: str
    difference: Difference | None
    pairs: int
    censored: tuple[int, ...] = ()


def compare(
    experiment: Experiment,
    baseline: str,
    metrics: list[str],
    target: Target | None,
    level: float = LEVEL,
    which: Which = "best",
) -> list[Compared]:
    """Returns the differences of all other cases from a baseline.

    Args:
        experiment: with its reports.
        baseline: name of the case.
        metrics: to compare; empty: all that the baseline's first report ends with.
        target: for rounds and bytes to it; None: none.
        level: of the confidence intervals.
        which: version of each run.

    Raises:
        ConfigError: there is no such case, no other one, or seeds do not pair.
    """
    first = experiment.case(baseline)
    others = [case for case in experiment.cases if case.name != baseline]
    if not others:
        raise ConfigError(f"{experiment.folder}: {baseline} is the only case: nothing to compare")
    known = experiment.reports(first)
    found = []
    for case in others:
        reports = experiment.reports(case)
        _check_pairs(experiment, (first, known), (case, reports))
        for metric in metrics or next(iter(known.values())).measures:
            pairs = [
                {seed: report.value_of(which, metric) for seed, report in side.items()}
                for side in (known, reports)
            ]
            found.append(_compared(case, metric, pairs[0], pairs[1], falls(metric), level))
        if target:
            found += _to_target(case, known, reports, target, level)
    return found


def _to_target(
    case: Case,
    known: Mapping[int, Report],
    reports: Mapping[int, Report],
    target: Target,
    level: float,
) -> list[Compared]:
    crossings = [
        {seed: report.crossing(target.metric, target.value) for seed, report in side.items()}
        for side in (known, reports)
    ]
    found = []
    for key in SPENT:
        first, second = (
            {seed: None if c is None else float(getattr(c, key)) for seed, c in side.items()}
            for side in crossings
        )
        found.append(_compared(case, key, first, second, True, level))
    return found


def _compared(
    case: Case,
    figure: str,
    first: Mapping[int, float | None],
    second: Mapping[int, float | None],
    less_is_better: bool,
    level: float,
) -> Compared:
    pairs = {
        seed: (a, b)
        for seed, a in first.items()
        if a is not None and (b := second[seed]) is not None
    }
    difference = None
    if pairs:
        difference = paired(
            {seed: pair[0] for seed, pair in pairs.items()},
            {seed: pair[1] for seed, pair in pairs.items()},
            falls=less_is_better,
            level=level,
        )
    left_out = tuple(sorted(set(first) - set(pairs)))
    return Compared(case.name, figure, difference, len(pairs), left_out)


def _check_pairs(
    experiment: Experiment,
    baseline: tuple[Case, Mapping[int, Report]],
    other: tuple[Case, Mapping[int, Report]],
) -> None:
    """Raises ConfigError unless both cases have reports of the same seeds."""
    (first, known), (case, reports) = baseline, other
    for lacking, has in ((case, reports), (first, known)):
        seeds = sorted((set(known) | set(reports)) - set(has))
        if not seeds:
            continue
        runs = {run.seed: run for run in experiment.runs(lacking)}
        run = runs.get(seeds[0])
        why = "" if run is None else f" ({run.status}{': ' * bool(run.error)}{run.error})"
        raise ConfigError(
            f"{experiment.folder}: {first.name} and {case.name} do not pair: {lacking.name} has "
            f"no result for seed {', '.join(map(str, seeds))}{why}; run the experiment again to "
            "add the missing runs"
        )
    if not known:
        raise ConfigError(f"{experiment.folder}: no run of {first.name} is done")


def as_document(
    found: list[Compared], baseline: str, target: Target | None, which: Which = "best"
) -> dict[str, Any]:
    """Returns the comparison as JSON-ready values."""
    wanted = {"metric": target.metric, "value": target.value} if target else None
    rows = [asdict(compared) for compared in found]
    return {"baseline": baseline, "of": which, "target": wanted, "differences": rows}
