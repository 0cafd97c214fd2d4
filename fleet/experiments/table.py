"""The table of an experiment: each case's mean over seeds, and what it spent to reach a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fleet.experiments.curves import Crossing
from fleet.experiments.estimates import LEVEL, Estimate, estimate
from fleet.experiments.experiment import Experiment, Target
from fleet.experiments.results import Report, Which

#: What a crossing is made of, and its columns in a table.
SPENT = ("rounds", "bytes_up", "bytes_down", "bytes_both")


@dataclass(frozen=True)
class ToTarget:
    """What the runs of one case spent until they reached a target.

    A run that never reached it is *censored*: it would have spent more than it did. It counts with
    what it spent in the whole run, so `at_least` is a lower bound of the mean.

    Attributes:
        n: number of runs.
        reached: number of runs that reached the target.
        spent: by name (`SPENT`), the estimate over the runs that reached the target.
        at_least: by name, mean over all runs, censored ones with all that they spent.
        censored: seeds that never reached the target.
    """

    n: int
    reached: int
    spent: Mapping[str, Estimate]
    at_least: Mapping[str, float]
    censored: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One case of the table.

    Attributes:
        case: its name.
        settings: what sets it apart.
        planned: number of runs in the grid.
        failed: number of runs that failed.
        final: estimate of the metric, of the best version or of the last round; None: no run has
            it.
        unmeasured: seeds of runs that are done and have no such metric.
        to_target: None without a target, or without a run.
        made_by: versions, commits and kinds of the runs, each once.
    """

    case: str
    settings: Mapping[str, Any]
    planned: int
    failed: int
    final: Estimate | None
    unmeasured: tuple[int, ...]
    to_target: ToTarget | None
    made_by: tuple[str, ...] = ()


def summarise(
    experiment: Experiment,
    metric: str,
    target: Target | None,
    level: float = LEVEL,
    which: Which = "best",
) -> list[Row]:
    """Returns the rows of the table.

    Args:
        experiment: with at least one run that is done.
        metric: to show.
        target: for rounds and bytes; None: none.
        level: of the confidence intervals.
        which: version of each run.

    Raises:
        ConfigError: a report cannot be read, or no round of a run has the target's metric.
    """
    rows = []
    for case in experiment.cases:
        reports = experiment.reports(case)
        finals = {seed: report.value_of(which, metric) for seed, report in reports.items()}
        known = [value for value in finals.values() if value is not None]
        runs = experiment.runs(case)
        rows.append(
            Row(
                case.name,
                case.settings,
                len(runs),
                sum(run.status == "failed" for run in runs),
                estimate(known, level) if known else None,
                tuple(seed for seed, value in finals.items() if value is None),
                to_target(reports, target, level) if target and reports else None,
                tuple(sorted({report.made_by for report in reports.values()})),
            )
        )
    return rows


def to_target(reports: Mapping[int, Report], target: Target, level: float = LEVEL) -> ToTarget:
    """Returns what runs spent until their monotone curves reached a target.

    Args:
        reports: by seed; at least one.
        target: metric and value.
        level: of the confidence intervals.

    Raises:
        ConfigError: no round of a run has the target's metric.
    """
    found = {seed: r.crossing(target.metric, target.value) for seed, r in reports.items()}
    reached = [crossing for crossing in found.values() if crossing is not None]
    whole = [crossing or whole_run(reports[seed]) for seed, crossing in found.items()]
    return ToTarget(
        len(found),
        len(reached),
        {key: estimate(_each(reached, key), level) for key in SPENT} if reached else {},
        {key: estimate(_each(whole, key)).mean for key in SPENT},
        tuple(seed for seed, crossing in found.items() if crossing is None),
    )


def whole_run(report: Report) -> Crossing:
    """Returns what a run spent altogether."""
    final, rounds = report.final, report.rounds
    last = float(rounds[-1]["round_id"]) if rounds else 0.0
    seconds = sum(float(record["seconds"]) for record in rounds)
    return Crossing(last, float(final["bytes_up"]), float(final["bytes_down"]), seconds)


def _each(crossings: Sequence[Crossing], key: str) -> list[float]:
    return [float(getattr(crossing, key)) for crossing in crossings]


def as_document(
    rows: Sequence[Row], metric: str, target: Target | None, which: Which = "best"
) -> dict[str, Any]:
    """Returns the table as JSON-ready values."""
    wanted = {"metric": target.metric, "value": target.value} if target else None
    cases = [asdict(row) for row in rows]
    return {"metric": metric, "of": which, "target": wanted, "cases": cases}
