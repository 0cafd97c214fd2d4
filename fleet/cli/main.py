"""`fedge fleet`: many agents on one machine."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click

from fedge.console import CommandGroup, FiniteRange, WholeRange, command_errors, log_less
from fedge.errors import ConfigError
from fleet.cli.options import (
    change_options,
    changes_of,
    followed_by,
    hook_option,
    interrupt_on_sigterm,
    is_whole,
    resume_option,
)
from fleet.cli.simulation import simulate, sweep

_LIMIT_MISSED = 6


@click.group(cls=CommandGroup)
def cli() -> None:
    """Run a whole fleet on this machine."""


cli.add_command(simulate)
cli.add_command(sweep)


@cli.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@change_options
@click.option(
    "--broker",
    default="auto",
    show_default=True,
    metavar="auto|mosquitto|embedded|mqtt://HOST:PORT|FILE",
    help="Start a broker of that kind here, or use one that runs; FILE (.yaml) has the keys of"
    " `broker` in agent.yaml, for TLS, WebSockets, logins.",
)
@click.option(
    "--hosts",
    type=WholeRange(min=0),
    help="Number of processes that host the agents; 0: one process for each agent  [default: one"
    " for each agent up to 24 agents, one for each core above].",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report, logs and the trained model  [default: runs/SCENARIO]",
)
@resume_option
@hook_option
@click.option("--json", "as_json", is_flag=True, help="Print the report on stdout as JSON.")
@command_errors
def run(
    scenario: Path,
    changes: tuple[str, ...],
    agents: int | None,
    rounds: int | None,
    seed: int | None,
    broker: str,
    hosts: int | None,
    out: Path | None,
    resume: bool,
    hooks: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run SCENARIO: a broker, a coordinator, and agents in processes of their own or hosted.

    Partitions the scenario's data, gives every agent its own rows in its own folder, runs the
    rounds over MQTT, trains the baselines, and writes report.json. A scenario
    of the task statistics trains nothing and prints a table.

    \b
    Exit codes: 0 done; 2 scenario, data or option wrong; 3 broker not reached; 4 the run ended
    without a result; 6 done, but a limit of the scenario was not kept; 130 interrupted: after a
    first round report and model so far are written, and --resume goes on.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise ConfigError("rich is missing: install fedge with its extra, fedge[fleet]") from error
    from fleet.live import LiveWatcher, print_interrupted, print_result
    from fleet.report import check_compared
    from fleet.runs.resume import RunInterrupted, resumed_changes
    from fleet.runs.run import RunOptions, run_scenario
    from fleet.scenario import load_scenario

    changed = changes_of(changes, agents, rounds, seed)
    described = load_scenario(scenario, changed)
    folder = out or Path("runs") / described.name
    if resume:
        changed = resumed_changes(folder, changed)
        described = load_scenario(scenario, changed)
    options = RunOptions(folder, changed, broker, hosts, resume)
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 140)
    interrupt_on_sigterm()
    try:
        with (
            LiveWatcher(console, described.show) as live,
            followed_by(hooks, live, folder) as watcher,
        ):
            report = run_scenario(scenario, options, watcher)
    except RunInterrupted as interrupted:
        command = ["fedge", "fleet", "run", str(scenario), "--out", str(folder), "--resume"]
        command += [] if broker == "auto" else ["--broker", broker]
        print_interrupted(console, described, interrupted.report, folder, command)
        raise
    kept = print_result(console, described, report, judge=is_whole(changed))
    console.print(f"report: {folder / 'report.json'}", highlight=False, markup=False)
    if as_json:
        click.echo(json.dumps(report))
    check_compared(report)
    if not kept:
        sys.exit(_LIMIT_MISSED)


@cli.command()
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option(
    "--workers",
    type=WholeRange(min=1, max=64),
    default=2,
    show_default=True,
    help="Threads that train, shared by all agents.",
)
@click.option(
    "--give-up-after",
    type=FiniteRange(min=0.1),
    metavar="SECONDS",
    help="Give up an agent that has not reached its broker by then (default: keep trying).",
)
@command_errors
def host(folders: tuple[Path, ...], workers: int, give_up_after: float | None) -> None:
    """Run many agents in this process until stopped: `fedge fleet run` does it for large fleets.

    Each FOLDER holds an agent.yaml, or folders that do. Every agent keeps its own connection, data
    and state folder, as with `fedge agent run`; the threads and the programs they train with are
    shared. Without -v only warnings and errors are logged. Ctrl-C or SIGTERM ends all of
    them cleanly.
    """
    from fleet.runs.host import run_host

    # Agents log a few lines each round: too many for a host.
    restore = log_less(logging.WARNING, "edge_agent", "broker")
    click.get_current_context().call_on_close(restore)
    run_host(folders, workers=workers, give_up_s=give_up_after)
