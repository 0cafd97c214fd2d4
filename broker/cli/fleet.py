"""`fedge broker init`, `enrol`, `revoke`, `rotate`, `list`: a safe fleet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.enrolment import print_tokens
from broker.cli.options import (
    AGENT,
    DAYS,
    FOLDER,
    JSON,
    NO_RELOAD,
    OUT,
    TOKEN,
    VALID,
    tell_broker,
)
from fedge.console import command_errors, printable
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from broker.security.fleet import Fleet

#: Of a log: a topic may have 65,535 bytes.
_LONGEST_LINE = 100_000


@click.command()
@FOLDER
@click.argument("agent_ids", metavar="AGENT_ID...", nargs=-1, required=True)
@OUT
@DAYS
@TOKEN
@VALID
@click.option(
    "--again",
    is_flag=True,
    help="Take names of revoked devices too; only after Mosquitto was restarted.",
)
@JSON
@NO_RELOAD
@command_errors
def enrol(
    folder: Path,
    agent_ids: Sequence[str],
    out: Path | None,
    days: int,
    as_token: bool,
    valid_h: float,
    again: bool,
    as_json: bool,
    no_reload: bool,
) -> None:
    """Let devices in: write the bundle that each needs, or print a token. All of them, or none.

    A bundle holds the device's private key: carry it there over a safe way (scp), then delete
    it here. On the device: `fedge agent enrol BUNDLE --dir DIR`.

    A token (--token) is one line, good for one device, once, for some hours. The device makes its
    own key and asks for a certificate; meanwhile `fedge broker serve-enrolment DIR` must run here.

    The name of a device that was revoked is refused: if that device is still connected, it would
    get its rights back. Take another name; or restart Mosquitto, which ends every connection, and
    then say --again.
    """
    from broker.security import devices
    from broker.security.fleet import Fleet, utc_now

    if out is not None and (as_token or len(agent_ids) > 1):
        raise ConfigError("--out is for one bundle")
    fleet = Fleet(folder)
    if as_token:
        valid = timedelta(hours=valid_h)
        print_tokens(fleet, agent_ids, valid, days, as_json=as_json, again=again)
    else:
        paths = devices.enrol_all(fleet, agent_ids, utc_now(), out, days, again=again)
        found = list(zip(agent_ids, paths, strict=True))
        if as_json:
            click.echo(json.dumps([{"agent_id": n, "bundle": str(p)} for n, p in found]))
        else:
            click.echo("\n".join(f"bundle of {name}: {path}" for name, path in found))
    if again:
        _warn_of_websockets(fleet)
    tell_broker(fleet, no_reload, quiet=as_json)


@click.command()
@FOLDER
@AGENT
@OUT
@DAYS
@click.option("--keep-old", is_flag=True, help="The old certificate stays valid until the next.")
@TOKEN
@VALID
@NO_RELOAD
@command_errors
def rotate(
    folder: Path,
    agent_id: str,
    out: Path | None,
    days: int,
    keep_old: bool,
    as_token: bool,
    valid_h: float,
    no_reload: bool,
) -> None:
    """Give a device a new key and certificate; the old one is revoked.

    With --keep-old the device can still connect to fetch the new bundle: rotate once more, without
    it, when the key may be in other hands. With --token the old one is revoked when the device
    comes with its token.
    """
    from broker.security import devices
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    if as_token:
        if out is not None:
            raise ConfigError("--out is for a bundle")
        options = {"as_json": False, "replaces": True, "keep_old": keep_old}
        print_tokens(fleet, [agent_id], timedelta(hours=valid_h), days, **options)
        _warn_of_websockets(fleet)
        return  # nothing has changed for the broker yet
    path = devices.rotate(fleet, agent_id, utc_now(), out, days, keep_old=keep_old)
    click.echo(f"new bundle of {agent_id}: {path}")
    _warn_of_websockets(fleet)
    tell_broker(fleet, no_reload)


def _warn_of_websockets(fleet: Fleet) -> None:
    if fleet.register.websockets:
        click.echo(
            f"Mosquitto 2.0 may still take the old key on port {fleet.register.websockets} "
            "(WebSockets): if somebody else has it, revoke the device and enrol it under another "
            "name",
            err=True,
        )


@click.command()
@FOLDER
@AGENT
@NO_RELOAD
@command_errors
def revoke(folder: Path, agent_id: str, no_reload: bool) -> None:
    """Shut a device out: a running broker is told, nobody else notices.

    If it is connected it can neither send nor receive from then on; once its connection ends it
    gets no other.
    """
    from broker.security import devices
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    devices.revoke(fleet, agent_id, utc_now())
    click.echo(f"revoked: {agent_id}")
    tell_broker(fleet, no_reload)


@click.command("list")
@FOLDER
@JSON
@command_errors
def list_devices(folder: Path, as_json: bool) -> None:
    """Show every certificate of the fleet's devices: name, serial, expiry, state."""
    from broker.security.fleet import Fleet, utc_now

    now = utc_now()
    rows = [
        {
            "agent_id": record.agent_id,
            "serial": record.serial,
            "expires": record.not_after.isoformat(),
            "state": record.state(now),
        }
        for record in Fleet(folder).register.devices
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max((len(row["agent_id"]) for row in rows), default=0)
    for row in rows:
        line = f"{row['agent_id']:{width}}  {row['state']:7}  {row['expires'][:10]}"
        click.echo(f"{line}  {row['serial']}")
    if not rows:
        click.echo("no device is enrolled")


@click.command()
@FOLDER
@click.argument("log", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@command_errors
def refusals(folder: Path, log: str) -> None:
    """Say in plain words who tried what it may not, from Mosquitto's log (a file, or stdin).

    Refused publications, wills and subscriptions are in the log when `log_type debug` and
    `log_type subscribe` are in DIR/broker/mosquitto.conf; refused connections always.
    """
    from broker.security.fleet import Fleet
    from broker.security.log_reader import RefusalReader

    reader = RefusalReader(Fleet(folder).register.federation)
    try:
        with click.open_file(log, errors="replace") as file:
            while line := file.readline(_LONGEST_LINE):
                if said := reader.read(line):
                    click.echo(printable(said))
    except OSError as error:
        raise ConfigError(f"{log} cannot be read: {error.strerror}") from error
