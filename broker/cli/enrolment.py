"""`fedge broker tokens` and `serve-enrolment`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.options import FOLDER, JSON
from fedge.console import FiniteRange, command_errors

if TYPE_CHECKING:
    from broker.security.fleet import Fleet


def print_tokens(
    fleet: Fleet,
    agent_ids: Sequence[str],
    valid: timedelta,
    days: int,
    *,
    as_json: bool,
    **options: bool,
) -> None:
    """Prints a token for each agent, as lines or JSON."""
    from broker.enrolment.invitations import invite_all
    from broker.security.fleet import utc_now

    now = utc_now()
    until = f"{now + valid:%Y-%m-%d %H:%M} UTC"
    tokens = invite_all(fleet, agent_ids, now, valid, days, **options)
    if as_json:
        rows = [{"agent_id": t.agent_id, "token": str(t), "expires": until} for t in tokens]
        click.echo(json.dumps(rows))
        return
    for token in tokens:
        click.echo(f"token of {token.agent_id}, valid once, until {until}:\n{token}")
    click.echo("next:")
    click.echo(f"  here:           fedge broker serve-enrolment {shlex.quote(str(fleet.folder))}")
    click.echo("  on the device:  fedge agent enrol TOKEN --dir DIR")


@click.command()
@FOLDER
@click.option("--withdraw", metavar="AGENT_ID", help="End this device's open token first.")
@JSON
@command_errors
def tokens(folder: Path, withdraw: str | None, as_json: bool) -> None:
    """Show the tokens of the last month: device, expiry and state.

    The secrets are not stored: a lost token must be replaced by a new one.
    """
    from broker.enrolment import invitations
    from broker.security.fleet import Fleet, utc_now

    now, fleet = utc_now(), Fleet(folder)
    if withdraw is not None:
        invitations.withdraw(fleet, withdraw, now)
        click.echo(f"withdrawn: {withdraw}", err=True)
    rows = [
        {
            "agent_id": invitation.agent_id,
            "state": invitation.state(now),
            "expires": invitation.expires.isoformat(),
            "replaces": invitation.replaces,
            "serial": invitation.serial,
        }
        for invitation in fleet.register.invitations
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max((len(str(row["agent_id"])) for row in rows), default=0)
    for row in rows:
        until = str(row["expires"])[:16].replace("T", " ")
        click.echo(f"{row['agent_id']:{width}}  {row['state']:9}  {until} UTC  {row['serial']}")
    if not rows:
        click.echo("there are no tokens")


@click.command("serve-enrolment")
@FOLDER
@click.option(
    "--for",
    "for_min",
    type=FiniteRange(min=0.01),
    metavar="MINUTES",
    help="Running time (default: until Ctrl-C or SIGTERM).",
)
@command_errors
def serve_enrolment(folder: Path, for_min: float | None) -> None:
    """Enrol devices with a token: answers on the enrolment port until stopped.

    Runs a separate Mosquitto. Signs certificates, so it reads DIR/authority/ca.key: run it only
    while devices are being installed.
    """
    from broker.enrolment.service import serve_enrolment
    from broker.link.settings import BrokerSettings
    from broker.security.fleet import Fleet
    from broker.security.mosquitto.reload import warn_if_moved

    fleet = Fleet(folder)
    register = fleet.register
    if warning := warn_if_moved(fleet.broker_folder):
        click.echo(warning, err=True)
    where = BrokerSettings(host=register.hosts[0], port=register.enrolment_port).address
    click.echo(f"devices with a token can enrol at {where} (Ctrl-C ends it)", err=True)
    serve_enrolment(fleet, None if for_min is None else 60 * for_min)
