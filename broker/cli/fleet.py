"""`fedge broker enrol`, `rotate`, `revoke`, `list`, `refusals`: devices of a fleet."""

from __future__ import annotations

import json
import shlex
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
    update_broker,
)
from fedge.console import command_errors
from fedge.errors import ConfigError
from fedge.limits import printable

if TYPE_CHECKING:
    from broker.security.fleet import Fleet

#: Longest line of a log: a topic may have 65,535 bytes.
_LONGEST_LINE = 100_000


@click.command()
@FOLDER
@click.argument("agent_ids", metavar="AGENT_ID...", nargs=-1, required=True)
@click.option(
    "--observer",
    is_flag=True,
    help="Not a device: somebody who reads statuses and results, and writes nothing.",
)
@OUT
@DAYS
@TOKEN
@VALID
@JSON
@NO_RELOAD
@command_errors
def enrol(
    folder: Path,
    agent_ids: Sequence[str],
    observer: bool,
    out: Path | None,
    days: int,
    as_token: bool,
    valid_h: float,
    as_json: bool,
    no_reload: bool,
) -> None:
    """Enrol devices: write a bundle or print a token for each. All of them, or none.

    A bundle contains the device's private key: copy it to the device over a secure channel (scp),
    then delete it here. On the device: `fedge agent enrol BUNDLE --dir DIR`.

    A token (--token) is one line, valid for one device, once, for some hours. The device makes its
    own key and requests a certificate; `fedge broker serve-enrolment DIR` must run here meanwhile.

    With --observer the bundle is a folder with PEM files, for any MQTT client (mosquitto_sub, Home
    Assistant): DIR/bundles/NAME, or --out.

    The name of a revoked device may be used again: rights belong to a certificate, and the revoked
    one has none.
    """
    from broker.security import devices
    from broker.security.fleet import Fleet, utc_now

    if out is not None and (as_token or len(agent_ids) > 1):
        raise ConfigError("--out is for one bundle")
    if observer and as_token:
        raise ConfigError("--token is for devices, not for an --observer")
    fleet = Fleet(folder)
    if observer:
        _enrol_observers(fleet, agent_ids, out, days, as_json=as_json)
    elif as_token:
        valid = timedelta(hours=valid_h)
        print_tokens(fleet, agent_ids, valid, days, as_json=as_json)
    else:
        paths = devices.enrol_all(fleet, agent_ids, utc_now(), out, days)
        found = list(zip(agent_ids, paths, strict=True))
        if as_json:
            click.echo(json.dumps([{"agent_id": n, "bundle": str(p)} for n, p in found]))
        else:
            click.echo("\n".join(f"bundle of {name}: {path}" for name, path in found))
    update_broker(fleet, no_reload, quiet=as_json)


def _enrol_observers(
    fleet: Fleet, names: Sequence[str], out: Path | None, days: int, *, as_json: bool
) -> None:
    from broker.security import devices
    from broker.security.fleet import utc_now

    made = [(name, devices.enrol_observer(fleet, name, utc_now(), out, days)) for name in names]
    if as_json:
        click.echo(json.dumps([{"agent_id": n, "bundle": str(p)} for n, p in made]))
        return
    register = fleet.register
    for name, path in made:
        here = shlex.quote(str(path))
        click.echo(f"observer {name}: certificate and key in {path}; for example:")
        click.echo(
            f"  mosquitto_sub -h {register.hosts[0]} -p {register.port} --cafile {here}/ca.crt"
            f" --cert {here}/observer.crt --key {here}/observer.key"
            f" -t 'fedge/v1/{register.federation}/results'"
        )


@click.command()
@FOLDER
@AGENT
@OUT
@DAYS
@click.option(
    "--keep-old", is_flag=True, help="The old certificate stays valid until the next rotation."
)
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
    """Give a device a new key and certificate, and revoke the old certificate.

    With --keep-old the device can still connect until the new bundle is installed: rotate once more
    without it if the old key may be stolen. With --token the old certificate is revoked when the
    device uses the token.
    """
    from broker.security import devices
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    if as_token:
        if out is not None:
            raise ConfigError("--out is for a bundle")
        options = {"as_json": False, "replaces": True, "keep_old": keep_old}
        print_tokens(fleet, [agent_id], timedelta(hours=valid_h), days, **options)
        update_broker(fleet, no_reload)
        return
    path = devices.rotate(fleet, agent_id, utc_now(), out, days, keep_old=keep_old)
    click.echo(f"new bundle of {agent_id}: {path}")
    update_broker(fleet, no_reload)


@click.command()
@FOLDER
@AGENT
@NO_RELOAD
@command_errors
def revoke(folder: Path, agent_id: str, no_reload: bool) -> None:
    """Revoke a device: all its certificates and its open token.

    A running broker takes its rights away and disconnects it; it cannot connect again.
    """
    from broker.security import devices
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    devices.revoke(fleet, agent_id, utc_now())
    click.echo(f"revoked: {agent_id}")
    click.echo(
        "a coordinator that runs marks it offline after three missed heartbeats; "
        f"`fedge coordinator forget {agent_id}` takes it off its list"
    )
    update_broker(fleet, no_reload)


@click.command()
@FOLDER
@command_errors
def sync(folder: Path) -> None:
    """Give a running broker the fleet's rules, whatever it has.

    For a broker that could not be reached when the fleet was changed. Clients and roles that
    somebody else gave the broker stay.
    """
    from broker.security.fleet import Fleet

    update_broker(Fleet(folder), no_reload=False)


@click.command("list")
@FOLDER
@JSON
@command_errors
def list_devices(folder: Path, as_json: bool) -> None:
    """Show every certificate of the fleet's devices: name, serial, expiry, state."""
    from broker.security.fleet import Fleet, utc_now

    now = utc_now()
    records = Fleet(folder).register.devices
    if as_json:
        rows = [
            {
                "agent_id": record.agent_id,
                "serial": record.serial,
                "expires": record.not_after.isoformat(),
                "state": record.state(now),
                "observer": record.observer,
            }
            for record in records
        ]
        click.echo(json.dumps(rows))
        return
    width = max((len(record.agent_id) for record in records), default=0)
    for record in records:
        line = f"{record.agent_id:{width}}  {record.state(now):7}  {record.not_after:%Y-%m-%d}"
        click.echo(f"{line}  {record.serial}{'  observer' if record.observer else ''}")
    if not records:
        click.echo("no device is enrolled")


@click.command()
@FOLDER
@click.argument("log", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@command_errors
def refusals(folder: Path, log: str) -> None:
    """Report refused actions from Mosquitto's log (a file, or stdin).

    The log contains refused publications, wills and subscriptions if DIR/broker/mosquitto.conf has
    `log_type debug` and `log_type subscribe`; refused connections always.
    """
    from broker.security.fleet import Fleet
    from broker.security.log_reader import RefusalReader

    reader = RefusalReader(Fleet(folder).register)
    try:
        with click.open_file(log, errors="replace") as file:
            while line := file.readline(_LONGEST_LINE):
                if refusal := reader.read(line):
                    click.echo(printable(refusal))
    except OSError as error:
        raise ConfigError(f"{log} cannot be read: {error.strerror}") from error
