"""Arguments and options of several commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedge.console import FiniteRange

if TYPE_CHECKING:
    from broker.security.fleet import Fleet


FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
AGENT = click.argument("agent_id", metavar="AGENT_ID")
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Path of the bundle (default: DIR/bundles/AGENT_ID.bundle).",
)
DAYS = click.option(
    "--days",
    default=730,
    show_default=True,
    type=click.IntRange(1, 36_500),
    help="Validity of the certificate.",
)
TOKEN = click.option(
    "--token",
    "as_token",
    is_flag=True,
    help="Print a one-time token instead: the device makes its own key.",
)
VALID = click.option(
    "--valid",
    "valid_h",
    default=24.0,
    show_default=True,
    type=FiniteRange(0.01, 24 * 365),
    metavar="HOURS",
    help="Validity of the token.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
#: For commands that change access rules or revocations.
NO_RELOAD = click.option(
    "--no-reload",
    is_flag=True,
    help="Leave a running broker alone: the change takes effect when it is started again.",
)


def update_broker(fleet: Fleet, no_reload: bool, *, quiet: bool = False) -> None:
    """Gives a running broker the fleet's rules, and reports it (`quiet`: on stderr)."""
    from broker.security import running_broker
    from broker.security.mosquitto.reload import warn_if_moved

    if no_reload:
        result = warn_if_moved(fleet.broker_folder) or (
            "the broker was left alone: the change takes effect at its next start"
        )
    else:
        result = running_broker.update_broker(fleet)
    click.echo(result, err=quiet)
