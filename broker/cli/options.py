"""Arguments and options that several commands share."""

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
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the bundle goes (default: DIR/bundles/AGENT_ID.bundle).",
)


DAYS = click.option(
    "--days",
    default=730,
    show_default=True,
    type=click.IntRange(1, 36_500),
    help="That the certificate is valid.",
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
    help="That a token may be used.",
)


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


#: For commands that change who may do what.
NO_RELOAD = click.option(
    "--no-reload",
    is_flag=True,
    help="Leave a running broker alone: the change takes effect when it is started again.",
)


def tell_broker(fleet: Fleet, no_reload: bool, *, quiet: bool = False) -> None:
    """Has a running broker read its rules again, and says so (`quiet`: on stderr)."""
    from broker.security.access_control import PID_FILE
    from broker.security.reload_mosquitto import reload_mosquitto, warn_if_moved

    if no_reload:
        said = warn_if_moved(fleet.broker_folder) or (
            "the broker was not told: it takes effect when it is started again"
        )
    else:
        said = reload_mosquitto(fleet.broker_folder / PID_FILE)
    click.echo(said, err=quiet)
