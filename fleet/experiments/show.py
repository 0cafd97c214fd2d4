"""Tables and comparisons for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.report import bytes_text
from fedge.console import counted
from fleet.experiments.compare import Compared
from fleet.experiments.estimates import Estimate
from fleet.experiments.experiment import Experiment, Target
from fleet.experiments.results import Which
from fleet.experiments.table import SPENT, Row, ToTarget

#: Seeds that a line names.
_LISTED = 10
_HEADINGS = {
    "rounds": "rounds",
    "bytes_up": "up",
    "bytes_down": "down",
    "bytes_both": "up and down",
}


#: Whose figures are shown, in words.
_OF = {"best": "the best version", "last": "the last round"}
_BEST = (
    "best version: the one of all rounds with the lowest held-out loss (or as stop.metric says), "
    "which is handed out; --of last shows the last round, the end of the learning curve"
)


def number(value: float) -> str:
    """Returns a number with four decimals, fewer where it is large."""
    size = abs(value)
    return f"{value:.{4 if size < 10 else 2 if size < 1000 else 0}f}"


def _plain(value: float) -> str:
    return f"{value:,.1f}"


def print_table(
    console: Console,
    experiment: Experiment,
    rows: Sequence[Row],
    metric: str,
    target: Target | None,
    level: float,
    which: Which = "best",
) -> None:
    """Prints the table of an experiment, and what it leaves out."""
    table = Table(title=_title(experiment, metric, target, which), title_justify="left")
    table.add_column("case", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column(f"{metric}: mean ± sd", justify="right")
    table.add_column(f"{level:.0%} interval", justify="right")
    if target:
        table.add_column("reached", justify="right")
        for name in SPENT:
            table.add_column(_HEADINGS[name], justify="right")
    for row in rows:
        cells = [row.case, str(row.final.n if row.final else 0), *_final_cells(row.final)]
        if target:
            cells += _target_cells(row.to_target)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if which == "best":
        console.print(_BEST, highlight=False, soft_wrap=True)
    for line in notes(experiment, rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _title(experiment: Experiment, metric: str, target: Target | None, which: Which) -> str:
    until = f"; rounds and bytes to {target.metric} {target.value:g}" if target else ""
    return f"{experiment.index.experiment}: {metric} of {_OF[which]}, over seeds{until}"


def _final_cells(final: Estimate | None) -> list[str]:
    if final is None:
        return ["–", "–"]
    return [_mean(final, number), _interval(final, number)]


def _mean(found: Estimate, text: Callable[[float], str]) -> str:
    return text(found.mean) + (f" ± {text(found.sd)}" if found.sd is not None else "")


def _interval(found: Estimate, text: Callable[[float], str]) -> str:
    if found.low is None or found.high is None:
        return "–"
    return f"{text(found.low)} to {text(found.high)}"


def _target_cells(found: ToTarget | None) -> list[str]:
    if found is None:
        return ["–"] * (1 + len(SPENT))
    cells = [f"{found.reached} of {found.n}"]
    for name in SPENT:
        text = _plain if name == "rounds" else bytes_text
        if found.censored:
            cells.append(f"> {text(found.at_least[name])}")
        else:
            cells.append(_mean(found.spent[name], text))
    return cells


def notes(experiment: Experiment, rows: Sequence[Row]) -> list[str]:
    """Returns a line for everything that the table's means do not cover."""
    found = []
    if any(row.to_target and row.to_target.censored for row in rows):
        found.append(
            "> : not all runs reached the target; those that did not count with all they spent, "
            "so this is a lower bound of the mean"
        )
    for row in rows:
        if row.unmeasured:
            seeds = ", ".join(map(str, row.unmeasured))
            found.append(f"{row.case}: not measured with seed {seeds}; not in its mean")
    made_by = sorted({one for row in rows for one in row.made_by})
    if len(made_by) > 1:
        found.append(f"not all runs were made in one way: {'; '.join(made_by)}")
    lacking: dict[tuple[str, str], list[int]] = {}
    for run in experiment.missing():
        why = f"failed: {run.error}" if run.status == "failed" else "not run yet"
        lacking.setdefault((run.case, why), []).append(run.seed)
    for (case, why), missing in lacking.items():
        word = "seed" if len(missing) == 1 else "seeds"
        found.append(f"{case} {word} {_listed(missing)} {why}")
    return found[:20] + ([f"... and {len(found) - 20} more lines"] if len(found) > 20 else [])


def _listed(seeds: Sequence[int]) -> str:
    more = f" and {len(seeds) - _LISTED} more" if len(seeds) > _LISTED else ""
    return ", ".join(map(str, seeds[:_LISTED])) + more


def print_comparison(
    console: Console,
    found: Sequence[Compared],
    baseline: str,
    target: Target | None,
    level: float,
    which: Which = "best",
) -> None:
    """Prints differences from a baseline."""
    title = f"differences from {baseline}, paired by seed, of {_OF[which]}s"
    title += f"; rounds and bytes to {target.metric} {target.value:g}" if target else ""
    table = Table(title=title, title_justify="left")
    for name in ("case", "figure", "pairs", "mean ± sd", f"{level:.0%} interval", "better with"):
        left = name in ("case", "figure")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    before = ""
    for one in found:
        case = "" if one.case == before else one.case
        before = one.case
        table.add_row(*(Text(cell) for cell in (case, *_difference_cells(one))))
    console.print(table)
    if any(one.censored for one in found):
        console.print(
            "pairs are fewer than seeds where a run of either case never reached the target, or "
            "has no such metric: their difference is not known",
            highlight=False,
            soft_wrap=True,
        )


def _difference_cells(one: Compared) -> list[str]:
    name = _HEADINGS.get(one.figure, one.figure)
    name = f"{name} to target" if one.figure in _HEADINGS else name
    pairs = f"{one.pairs} of {one.pairs + len(one.censored)}"
    if one.difference is None:
        return [name, pairs, "–", "–", "–"]
    text: Callable[[float], str] = number
    if one.figure in SPENT:
        text = _plain if one.figure == "rounds" else _signed_bytes
    found, wins = one.difference, one.difference.wins
    ties = f", {counted(found.ties, 'tie')}" if found.ties else ""
    estimate = found.estimate
    return [
        name,
        pairs,
        "+" * (estimate.mean > 0) + _mean(estimate, text),
        _interval(estimate, text),
        f"{wins} of {one.pairs} seeds{ties}",
    ]


def _signed_bytes(count: float) -> str:
    return f"{'-' if count < 0 else ''}{bytes_text(abs(count))}"
