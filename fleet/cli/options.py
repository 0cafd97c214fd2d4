"""Options that `fedge fleet run`, `fleet simulate` and others share: changes to the scenario."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedge.console import WholeRange
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from fleet.runs.watcher import Watcher

#: As `coordinator.machine.roster.MAX_AGENTS`, which `--help` need not import.
MAX_AGENTS = 1_000_000
F = TypeVar("F", bound=Callable[..., Any])


def change_options(command: F) -> F:
    """Adds `--set`, `--agents`, `--rounds` and `--seed`; `changes_of` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the scenario, checked like the file: partition.alpha=0.1,"
        " training.learning_rate=0.05, 'algorithm={name: fedprox, mu: 0.1}'; repeatable.",
    ),
    click.option(
        "--agents",
        type=WholeRange(min=1, max=MAX_AGENTS),
        help="Number of agents, as --set agents=N  [default: the scenario's].",
    ),
    click.option(
        "--rounds",
        type=WholeRange(min=1),
        help="Number of rounds, as --set federation.rounds=N  [default: the scenario's].",
    ),
    click.option(
        "--seed",
        type=WholeRange(min=0, max=1 << 31),
        help="Seed of everything random, as --set seed=N: partition, cohorts, initial weights,"
        " order of rows, faults; `seeds` of the scenario sets one alone  [default: the scenario's,"
        " else 0 with the initial weights of the model's package].",
    ),
)


resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Go on with the interrupted run in the output folder, with what it was started with.",
)


hook_option = click.option(
    "--hook",
    "hooks",
    multiple=True,
    metavar="NAME|SETTINGS",
    help="Follow the run with tensorboard or mlflow, or with their settings: '{name: mlflow, uri:"
    " mlruns}'; repeatable (extra [track]).",
)


def followed_by(
    hooks: tuple[str, ...], watcher: Watcher, out: Path
) -> AbstractContextManager[Watcher]:
    """Returns a context whose watcher calls hooks, too; without any, the watcher itself.

    Raises:
        ConfigError: a hook is unknown, its settings are wrong, or its package is missing.
    """
    if not hooks:
        return nullcontext(watcher)
    from fedge.yaml_config import parse_value
    from fleet.experiments.hooks.follow import following

    return following(watcher, [parse_value(text, f"--hook {text}") for text in hooks], out)


def interrupt_on_sigterm() -> None:
    """Makes SIGTERM end a run like Ctrl-C: through the blocks that end its processes."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def changes_of(
    changes: tuple[str, ...], agents: int | None, rounds: int | None, seed: int | None
) -> dict[str, Any]:
    """Returns the changes that the options name, by full key.

    Raises:
        ConfigError: a change has another form than KEY=VALUE, or an unknown first part; or a key
            is given by `--set` and by an option of its own.
    """
    from fleet.scenario import scenario_changes
    from fleet.settings import option, parse_changes

    named = {"agents": agents, "federation.rounds": rounds, "seed": seed}
    given = {key: value for key, value in named.items() if value is not None}
    parsed = parse_changes(changes)
    for key, value in parsed.items():
        if (full := next(iter(scenario_changes({key: value})))) in given:
            name = full.rpartition(".")[2]
            raise ConfigError(
                f"--{name} {given[full]} and {option(key, value)} are one key: give one of them"
            )
    return scenario_changes(parsed) | given


def is_whole(changes: dict[str, Any]) -> bool:
    """Returns whether a run with the changes has the scenario's agents and rounds.

    The limits of a scenario's baselines hold for whole runs only.
    """
    return not changes.keys() & {"agents", "federation.rounds"}
