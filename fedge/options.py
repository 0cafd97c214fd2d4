"""Command-line options of agents and coordinator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fedge.console import FiniteRange

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def config_option(help_text: str) -> _Decorator:
    """Returns the required option `--config FILE`."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        required=True,
        help=help_text,
    )


give_up_option: _Decorator = click.option(
    "--give-up-after",
    type=FiniteRange(min=0.1),
    metavar="SECONDS",
    help="End with exit code 3 if the broker is not reached in time (default: keep trying).",
)
