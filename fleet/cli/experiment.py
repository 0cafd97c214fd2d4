"""`fedge experiment`: grids of runs, with tables, comparisons and pictures."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fedge.console import (
    CommandGroup,
    FiniteFloat,
    FiniteRange,
    WholeRange,
    command_errors,
    counted,
)
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from fleet.experiments.execution.run import Prepared
    from fleet.experiments.experiment import Experiment, Target
    from fleet.experiments.results import Which

#: In the name of the folder's lock: one process runs an experiment.
_ROLE = "experiment"
#: A run failed: the experiment is done, below what its grid asks for.
_INCOMPLETE = 6
_FOLDER = click.Path(path_type=Path, file_okay=False)
_LEVEL = click.option(
    "--level",
    type=FiniteRange(min=0, max=1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the confidence intervals.",
)
_TARGET = click.option(
    "--target",
    type=FiniteFloat(),
    help="Value of --metric for rounds and bytes to it  [default: the grid's].",
)


_OF = click.option(
    "--of",
    "which",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Whose figures: the best version, by held-out loss or as stop.metric says, which is handed"
    " out; or the last round that measured.",
)


@click.group(cls=CommandGroup)
def cli() -> None:
    """Run grids of federations with several seeds: tables, comparisons, pictures."""


@cli.command()
@click.argument("grid", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--out", type=_FOLDER, help="Folder of the experiment  [default: runs/experiments/NAME]"
)
@click.option(
    "--jobs", type=WholeRange(min=1), help="Runs at the same time  [default: one per core]."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of every run, as the grid's `set` does; repeatable.",
)
@click.option(
    "--seeds", type=WholeRange(min=1), help="Number of seeds, from 0  [default: the grid's]."
)
@click.option(
    "--resume/--fresh",
    default=True,
    help="Skip runs that are done with the same configuration, or repeat them  [default: skip].",
)
@click.option("--json", "as_json", is_flag=True, help="Print experiment.json on stdout.")
@command_errors
def run(
    grid: Path,
    out: Path | None,
    jobs: int | None,
    changes: tuple[str, ...],
    seeds: int | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Run every case of GRID with every seed, in parallel.

    All combinations are checked before the first run begins. Each run has a folder of its own with
    report.json, configuration.yaml, log.txt and the trained model. A run that fails is recorded,
    and the others go on. After Ctrl-C the same command goes on with the runs that are left.

    \b
    Exit codes: 0 done; 2 grid, scenario, data or option wrong; 6 done, but runs failed;
    130 interrupted.
    """
    _need_rich()
    from rich.console import Console

    from fleet.experiments.execution.plan import make_plan
    from fleet.experiments.execution.run import prepare
    from fleet.runs.folders import used_alone
    from fleet.settings import parse_changes

    plan = make_plan(grid, parse_changes(changes), seeds or 0)
    folder = out or Path("runs/experiments") / plan.name
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 140)
    began = time.monotonic()
    with used_alone(folder, _ROLE):
        prepared = prepare(plan, folder, fresh=not resume)
        processes = min(jobs or _cores(), max(1, len(prepared.jobs)))
        done = len(prepared.index.runs) - len(prepared.jobs)
        cases, seed_count = counted(len(plan.cases), "case"), counted(len(plan.seeds), "seed")
        line = f"{plan.name}: {cases} with {seed_count}, {counted(len(prepared.index.runs), 'run')}"
        line += f", {done} of them done already" if done else ""
        console.print(f"{line}; {processes} at a time", highlight=False)
        signal.signal(signal.SIGTERM, _interrupt)
        _run(prepared, processes, console)
    index = _conclude(folder, console, time.monotonic() - began)
    if as_json:
        click.echo(json.dumps(index))
    if any(run["status"] == "failed" for run in index["runs"]):
        sys.exit(_INCOMPLETE)


def _run(prepared: Prepared, processes: int, console: Any) -> None:
    from fleet.experiments.execution.progress import ProgressBars
    from fleet.experiments.execution.run import run_prepared
    from fleet.experiments.experiment import load_experiment

    done = len(prepared.index.runs) - len(prepared.jobs)
    try:
        with ProgressBars(console, prepared.jobs, done) as bars:
            run_prepared(prepared, processes, bars)
    except KeyboardInterrupt:
        left = counted(len(load_experiment(prepared.folder).missing()), "run")
        words = f"{left} left; the same command without --fresh goes on with them"
        console.print(words, highlight=False)
        raise


def _conclude(folder: Path, console: Any, seconds: float) -> dict[str, Any]:
    """Says what was done and what comes next; returns experiment.json."""
    from fleet.experiments.experiment import INDEX_FILE

    index: dict[str, Any] = json.loads((folder / INDEX_FILE).read_text())
    failed = [run for run in index["runs"] if run["status"] == "failed"]
    for run in failed:
        line = f"failed: {run['case']} seed {run['seed']}: {run['error']}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    done = len(index["runs"]) - len(failed)
    words = f"{counted(done, 'run')} done" + (f", {len(failed)} failed" if failed else "")
    console.print(f"{words}, in {seconds:.1f} s", highlight=False)
    if done:
        console.print(f"next: fedge experiment table {folder}", highlight=False, soft_wrap=True)
    return index


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--metric", help="To show  [default: the target's, else the model's].")
@_OF
@_TARGET
@_LEVEL
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write one row for each round of each run, for pandas.read_csv.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table on stdout as JSON.")
@command_errors
def table(
    folder: Path,
    metric: str | None,
    which: Which,
    target: float | None,
    level: float,
    csv_file: Path | None,
    as_json: bool,
) -> None:
    """Show mean, deviation and confidence interval of each case of FOLDER over its seeds.

    With a target also rounds and bytes until the learning curve reaches it: curves are made
    monotone (best so far), and crossed by linear interpolation. Runs that never reach it are
    counted and shown.
    """
    _need_rich()
    from rich.console import Console

    from fleet.experiments.experiment import load_experiment
    from fleet.experiments.long_table import write_csv
    from fleet.experiments.show import print_table
    from fleet.experiments.table import as_document, summarise

    experiment = load_experiment(folder)
    name = metric or experiment.default_metric()
    _check_metric(experiment, name)
    wanted = _target(experiment, name, target)
    rows = summarise(experiment, name, wanted, level, which)
    if csv_file:
        count = write_csv(experiment, csv_file)
        click.echo(f"{csv_file}: {counted(count, 'row')}", err=True)
    if as_json:
        click.echo(json.dumps(as_document(rows, name, wanted, which)))
    else:
        width = None if sys.stdout.isatty() else 200
        print_table(Console(width=width), experiment, rows, name, wanted, level, which)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--baseline", required=True, metavar="CASE", help="Case to compare with.")
@click.option("--metric", help="One metric only  [default: all].")
@_OF
@_TARGET
@_LEVEL
@click.option("--json", "as_json", is_flag=True, help="Print the comparison on stdout as JSON.")
@command_errors
def compare(
    folder: Path,
    baseline: str,
    metric: str | None,
    which: Which,
    target: float | None,
    level: float,
    as_json: bool,
) -> None:
    """Show the differences of all cases of FOLDER from one of them, paired by seed.

    Runs with the same seed share data, partition and initial weights, so the difference of a pair
    varies less than the runs do. A confidence interval without 0 is a difference.
    """
    _need_rich()
    from rich.console import Console

    from fleet.experiments.compare import as_document
    from fleet.experiments.compare import compare as differences
    from fleet.experiments.experiment import load_experiment
    from fleet.experiments.show import print_comparison

    experiment = load_experiment(folder)
    if metric:
        _check_metric(experiment, metric)
    wanted = _target(experiment, metric or experiment.default_metric(), target)
    found = differences(experiment, baseline, [metric] if metric else [], wanted, level, which)
    if as_json:
        click.echo(json.dumps(as_document(found, baseline, wanted, which)))
    else:
        width = None if sys.stdout.isatty() else 200
        print_comparison(Console(width=width), found, baseline, wanted, level, which)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["curves", "bytes", "agents", "confusion"]),
    default="curves",
    show_default=True,
    help="Metric over rounds, or over bytes; its distribution over agents; confusion matrices.",
)
@click.option("--metric", help="Metric, or name of the matrix  [default: as for table].")
@click.option("--case", "cases", multiple=True, help="Only this case; repeatable.")
@click.option(
    "--band",
    type=click.Choice(["sd", "ci", "none"]),
    default="sd",
    show_default=True,
    help="Around the mean: standard deviation, 95 % confidence interval, none.",
)
@click.option(
    "--direction",
    type=click.Choice(["up", "down", "both"]),
    default="both",
    show_default=True,
    help="Of the bytes.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File: .png, .svg or .pdf  [default: FOLDER/KIND.png]",
)
@command_errors
def plot(
    folder: Path,
    kind: str,
    metric: str | None,
    cases: tuple[str, ...],
    band: str,
    direction: str,
    out: Path | None,
) -> None:
    """Draw a picture of FOLDER: an experiment, the folder of a run, or a report.json.

    Needs matplotlib: pip install 'fedge[plot]'.
    """
    from fleet.experiments.experiment import load_experiment
    from fleet.experiments.pictures.draw import make_view, write_picture

    experiment = load_experiment(folder)
    path = out or experiment.folder / f"{kind}.png"
    view = make_view(experiment, kind, metric, cases, band, direction)
    write_picture(view, kind, path)
    click.echo(path)


def _check_metric(experiment: Experiment, metric: str) -> None:
    """Raises ConfigError where no round of a report has the metric."""
    experiment.any_report().curve(metric)


def _target(experiment: Experiment, metric: str, value: float | None) -> Target | None:
    """Returns the target that an option names; else that of the grid."""
    from fleet.experiments.experiment import Target

    return experiment.index.target if value is None else Target(metric=metric, value=value)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _need_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ConfigError("rich is missing: pip install 'fedge[fleet]'") from error


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # SIGTERM ends an experiment like Ctrl-C: through the `finally` blocks that end its processes.
    raise KeyboardInterrupt
