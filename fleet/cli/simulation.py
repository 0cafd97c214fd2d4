"""`fedge fleet simulate` and `fedge fleet sweep`: federations in virtual time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedge.console import WholeRange, command_errors
from fedge.errors import ConfigError
from fedge.system import one_thread_each
from fleet.cli.options import (
    change_options,
    changes_of,
    followed_by,
    hook_option,
    interrupt_on_sigterm,
    resume_option,
)

if TYPE_CHECKING:
    from fleet.simulate import SimulateOptions
    from fleet.virtual.faults import FaultPlan
    from fleet.virtual.sweep import Change

#: Exit code of `fleet.virtual.invariants.InvariantViolated`, which is imported only when needed.
_VIOLATED = 7
_YAML = click.Path(path_type=Path, dir_okay=False)
_SIGNED = click.option(
    "--signed", is_flag=True, help="The coordinator signs, and agents require its signature."
)


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@change_options
@click.option("--faults", type=_YAML, help="Fault plan  [default: no faults].")
@click.option("--profiles", type=_YAML, help="Device profiles  [default: those that ship]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report, trace and the trained model  [default: runs/SCENARIO-simulated]",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "exact", "bytes", "arrays"]),
    default="auto",
    show_default=True,
    help="exact: every message of every agent is an event. bytes: cohorts of agents, with real"
    " messages. arrays: cohorts, with sizes in place of messages. auto: the first that does what is"
    " asked and takes seconds.",
)
@click.option(
    "--kernel",
    type=click.Choice(["auto", "vectorized", "single"]),
    default="auto",
    show_default=True,
    help="Train the agents of a cohort in one call, or each by itself; auto: what is faster.",
)
@click.option(
    "--processes",
    type=WholeRange(min=1),
    help="Processes that simulate cohorts  [default: one for each core].",
)
@click.option(
    "--ray", metavar="ADDRESS", help="Simulate cohorts on a cluster of Ray; local: on this machine."
)
@click.option(
    "--trace/--no-trace",
    default=None,
    help="Write every event to trace.jsonl  [default: where the simulation is exact].",
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Check the invariants after every event  [default: where the simulation is exact].",
)
@resume_option
@hook_option
@click.option("--json", "as_json", is_flag=True, help="Print the report on stdout as JSON.")
@_SIGNED
@command_errors
def simulate(
    scenario: Path,
    changes: tuple[str, ...],
    agents: int | None,
    rounds: int | None,
    seed: int | None,
    faults: Path | None,
    profiles: Path | None,
    out: Path | None,
    mode: str,
    kernel: str,
    processes: int | None,
    ray: str | None,
    trace: bool | None,
    check: bool | None,
    resume: bool,
    hooks: tuple[str, ...],
    as_json: bool,
    signed: bool,
) -> None:
    """Run SCENARIO in virtual time: no broker, no waiting.

    Small fleets are simulated message by message, with the real machines: device profiles set how
    fast, how well connected and how often online the devices are, a fault plan sets the faults, and
    trace.jsonl has every event. Large ones are simulated as cohorts, up to millions of agents.
    Writes report.json, with the names of `fedge fleet run`.

    \b
    Exit codes: 0 done; 2 scenario, data, plan or option wrong; 4 the federation did not finish;
    7 an invariant was violated; 130 interrupted: after a first round report and model so far are
    written, and --resume goes on: cohorts after the last round, an exact simulation is played
    again from its seeds.
    """
    _need_rich()
    # Before numpy is loaded: one process or many, the last digit is the same.
    click.get_current_context().with_resource(one_thread_each())
    from rich.console import Console

    from fleet.live import LiveWatcher, print_interrupted, print_result
    from fleet.report import check_compared
    from fleet.runs.resume import RunInterrupted, resumed_changes
    from fleet.scenario import load_scenario
    from fleet.simulate import SimulateOptions
    from fleet.simulate import simulate as run_simulation
    from fleet.virtual.shells import silence_logs
    from fleet.virtual.simulate import TRACE_FILE

    click.get_current_context().call_on_close(silence_logs())
    changed = changes_of(changes, agents, rounds, seed)
    described = load_scenario(scenario, changed)
    folder = out or Path("runs") / f"{described.name}-simulated"
    if resume:
        changed = resumed_changes(folder, changed)
        described = load_scenario(scenario, changed)
    options = SimulateOptions(
        folder,
        changed,
        mode,
        kernel,
        processes,
        ray,
        faults,
        profiles,
        trace,
        check,
        signed=signed,
        resume=resume,
    )
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 140)
    began = time.perf_counter()
    interrupt_on_sigterm()
    try:
        with (
            LiveWatcher(console, described.show) as live,
            followed_by(hooks, live, folder) as watcher,
        ):
            report = run_simulation(scenario, options, watcher)
    except RunInterrupted as interrupted:
        command = _resume_command(scenario, options)
        print_interrupted(console, described, interrupted.report, folder, command)
        raise
    print_result(console, described, report, judge=False)
    virtual, wall = report["virtual_seconds"], time.perf_counter() - began
    console.print(f"{virtual:,.1f} virtual seconds in {wall:.1f} s", highlight=False)
    files = f"report: {folder / 'report.json'}"
    files += f" · trace: {folder / TRACE_FILE}" if (folder / TRACE_FILE).exists() else ""
    console.print(files, highlight=False, markup=False)
    if as_json:
        click.echo(json.dumps(report))
    check_compared(report)


def _resume_command(scenario: Path, options: SimulateOptions) -> list[str]:
    """Returns the command that goes on with an interrupted simulation."""
    command = ["fedge", "fleet", "simulate", str(scenario), "--out", str(options.out)]
    values = {
        "--faults": options.faults,
        "--profiles": options.profiles,
        "--processes": options.processes,
        "--ray": options.ray,
    }
    for name, value in values.items():
        command += [] if value is None else [name, str(value)]
    flags = {"--no-trace": options.trace is False, "--no-check": options.check is False}
    flags |= {"--signed": options.signed, "--resume": True}
    return command + [name for name, is_given in flags.items() if is_given]


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path), required=False)
@click.option(
    "--seeds",
    type=WholeRange(min=1),
    default=200,
    show_default=True,
    help="Number of seeds to try.",
)
@click.option(
    "--start", type=WholeRange(min=0), default=0, show_default=True, help="The first seed."
)
@click.option(
    "--jobs",
    type=WholeRange(min=1),
    default=1,
    show_default=True,
    help="Processes that try seeds at the same time.",
)
@click.option("--faults", type=_YAML, help="One fault plan for all seeds, instead of random ones.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/sweep"),
    show_default=True,
    help="Folder for the trace and the fault plan of a seed that fails.",
)
@click.option(
    "--mixed",
    is_flag=True,
    help="Let faults befall half of the agents; the others are simulated as a cohort.",
)
@_SIGNED
@command_errors
def sweep(
    scenario: Path | None,
    seeds: int,
    start: int,
    jobs: int,
    faults: Path | None,
    out: Path,
    mixed: bool,
    signed: bool,
) -> None:
    """Try many seeds: small random federations with random faults, every invariant checked.

    With SCENARIO its federation is tried instead of random ones. For the first seed that fails,
    prints the fewest faults with which it still fails, and the events before the failure.

    \b
    Exit codes: 0 no seed failed; 2 scenario, plan or option wrong; 7 a seed failed;
    130 interrupted.
    """
    _need_rich()
    from rich.console import Console
    from rich.progress import track

    from fedge.yaml_config import load_config
    from fleet.virtual.faults import FaultPlan
    from fleet.virtual.shells import silence_logs
    from fleet.virtual.sweep import sweep as outcomes

    click.get_current_context().call_on_close(silence_logs())
    plan = load_config(faults, FaultPlan) if faults else None
    console = Console(stderr=True)
    from fleet.batched.mixed import mixed_trial

    change = mixed_trial if mixed else None
    tried = outcomes(range(start, start + seeds), jobs, plan, scenario, signed, change)
    began, events, checks, failed = time.perf_counter(), 0, 0, []
    for outcome in track(tried, "seeds", total=seeds, console=console, transient=True):
        events, checks = events + outcome.events, checks + outcome.checks
        if outcome.problem:
            failed.append(outcome.seed)
            click.echo(outcome.problem)
    wall = time.perf_counter() - began
    click.echo(f"{seeds} seeds, {events:,} events, {checks:,} checks in {wall:.1f} s")
    if failed:
        _explain(failed[0], plan, scenario, out, signed, change)
        sys.exit(_VIOLATED)


def _explain(
    seed: int,
    plan: FaultPlan | None,
    scenario: Path | None,
    out: Path,
    signed: bool,
    change: Change | None,
) -> None:
    """Prints a failing seed with the fewest faults with which it still fails."""
    from fleet.runs.folders import make_folder
    from fleet.virtual.sweep import plan_of, plan_text, shrink, write_trace

    fewer = shrink(seed, plan or plan_of(seed, scenario, change), scenario, signed, change)
    make_folder(out)
    trace, file = out / f"seed-{seed}.jsonl", out / f"seed-{seed}.yaml"
    outcome = write_trace(seed, fewer, trace, scenario, signed, change)
    file.write_text(plan_text(fewer))
    click.echo(f"\nseed {seed}, fewest faults with which it fails ({file}):\n{plan_text(fewer)}")
    click.echo("\n".join(outcome.last))
    click.echo(f"{outcome.problem}\ntrace: {trace}")


def _need_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise ConfigError("rich is missing: pip install 'fedge[fleet]'") from error
