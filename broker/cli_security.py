"""`fedge broker init`, `enrol`, `revoke`, `rotate`, `rotate-key`, `list`: a safe fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from models.console import command_errors

if TYPE_CHECKING:
    from broker.security import Fleet

_FOLDER = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
_AGENT = click.argument("agent_id", metavar="AGENT_ID")
_OUT = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the bundle goes (default: DIR/bundles/AGENT_ID.bundle).",
)
_DAYS = click.option(
    "--days",
    default=730,
    show_default=True,
    type=click.IntRange(1, 36_500),
    help="That the certificate is valid.",
)
_NO_RELOAD = click.option(
    "--no-reload",
    is_flag=True,
    help="Leave a running broker alone: the change takes effect when it is started again.",
)


@click.command()
@_FOLDER
@click.option(
    "--host",
    "hosts",
    required=True,
    metavar="NAME[,NAME|IP...]",
    help="Names and addresses of the broker; devices use the first.",
)
@click.option("--federation", default="fleet", show_default=True, help="Its name.")
@click.option("--port", default=8883, show_default=True, type=click.IntRange(1, 65_535))
@click.option("--bind", default="", help="Address to listen on (default: all of this machine).")
@click.option(
    "--user",
    default="",
    help="Account that Mosquitto runs under (default: you; for root: mosquitto).",
)
@command_errors
def init(folder: Path, hosts: str, federation: str, port: int, bind: str, user: str) -> None:
    """Make the certificates and the Mosquitto configuration of a new fleet in DIR.

    Everything is made or nothing. On a folder that holds this fleet already it changes nothing and
    says what is there. DIR/authority/ca.key is the fleet's master key: keep a copy in a safe place.
    """
    from broker.security import REGISTER_FILE, Fleet, FleetSettings, create_fleet, utc_now

    names = [name.strip() for name in hosts.split(",")]
    settings = FleetSettings(federation, names, port, bind, user)
    if (folder / REGISTER_FILE).exists():
        fleet = Fleet(folder)
        fleet.check_same(settings)
        _say_what_is_there(fleet)
    else:
        fleet = create_fleet(folder, settings, utc_now())
        click.echo(f"fleet {federation!r} made in {fleet.folder}; next:")
    _say_next(fleet)


def _say_what_is_there(fleet: Fleet) -> None:
    from broker.security import utc_now

    now = utc_now()
    active = {r.agent_id for r in fleet.register.devices if r.state(now) == "active"}
    click.echo(
        f"{fleet.folder} holds fleet {fleet.register.federation!r} with {len(active)} devices"
        " enrolled; nothing was changed"
    )


def _say_next(fleet: Fleet) -> None:
    from broker import access
    from broker.security import COORDINATOR_FOLDER, IDENTITY_FILE, SIGNING_FILE

    middle, config = fleet.folder / COORDINATOR_FOLDER, fleet.broker_folder / access.CONFIG_FILE
    identity = str(middle / IDENTITY_FILE)
    tls = {"ca_file": str(middle / access.CA_FILE), "cert_file": identity, "key_file": identity}
    section = {"host": fleet.register.hosts[0], "port": fleet.register.port, "tls": tls}
    line = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=10_000).strip()
    click.echo(f"  start the broker:     mosquitto -c {config}")
    click.echo(f"  in coordinator.yaml:  broker: {line}")
    click.echo(f"                        signing_key: {middle / SIGNING_FILE}")
    click.echo(f"  for each device:      fedge broker enrol {fleet.folder} AGENT_ID")


@click.command()
@_FOLDER
@_AGENT
@_OUT
@_DAYS
@_NO_RELOAD
@command_errors
def enrol(folder: Path, agent_id: str, out: Path | None, days: int, no_reload: bool) -> None:
    """Let a device in, and write the bundle that it needs.

    The bundle holds the device's private key: carry it there over a safe way (scp), then delete
    it here. On the device: `fedge agent enrol BUNDLE --dir DIR`.
    """
    from broker.security import Fleet, utc_now

    fleet = Fleet(folder)
    path = fleet.enrol(agent_id, utc_now(), out, days)
    click.echo(f"bundle of {agent_id}: {path}")
    _tell_broker(fleet, no_reload)


@click.command()
@_FOLDER
@_AGENT
@_OUT
@_DAYS
@click.option("--keep-old", is_flag=True, help="The old certificate stays valid until the next.")
@_NO_RELOAD
@command_errors
def rotate(
    folder: Path, agent_id: str, out: Path | None, days: int, keep_old: bool, no_reload: bool
) -> None:
    """Give a device a new key and certificate; the old one is revoked.

    With --keep-old the device can still connect to fetch the new bundle: rotate once more, without
    it, when the key may be in other hands.
    """
    from broker.security import Fleet, utc_now

    fleet = Fleet(folder)
    path = fleet.rotate(agent_id, utc_now(), out, days, keep_old=keep_old)
    click.echo(f"new bundle of {agent_id}: {path}")
    _tell_broker(fleet, no_reload)


@click.command()
@_FOLDER
@_AGENT
@_NO_RELOAD
@command_errors
def revoke(folder: Path, agent_id: str, no_reload: bool) -> None:
    """Shut a device out: a running broker is told, nobody else notices.

    If it is connected it can neither send nor receive from then on; once its connection ends it
    gets no other.
    """
    from broker.security import Fleet, utc_now

    fleet = Fleet(folder)
    fleet.revoke(agent_id, utc_now())
    click.echo(f"revoked: {agent_id}")
    _tell_broker(fleet, no_reload)


def _tell_broker(fleet: Fleet, no_reload: bool) -> None:
    from broker.access import PID_FILE
    from broker.reload import reload_mosquitto

    if no_reload:
        click.echo("the broker was not told: it takes effect when it is started again")
        return
    click.echo(reload_mosquitto(fleet.broker_folder / PID_FILE))


@click.command("rotate-key")
@_FOLDER
@click.option("--finish", is_flag=True, help="The old key signs no more.")
@click.option(
    "--at-once",
    is_flag=True,
    help="The old key is lost or in other hands: no overlap, every device needs a new bundle.",
)
@command_errors
def rotate_key(folder: Path, finish: bool, at_once: bool) -> None:
    """Give the coordinator a new signing key.

    Until the rotation is ended with --finish the coordinator signs with the old key and the new
    one, and devices that trust the old one learn the new one from it. A device that is away all
    that time needs a new bundle.
    """
    from broker.seal import key_id
    from broker.security import COORDINATOR_FOLDER, SIGNING_FILE, Fleet, utc_now

    if finish and at_once:
        raise click.UsageError("--finish ends an overlap, --at-once has none: choose one")
    fleet = Fleet(folder)
    if finish:
        fleet.finish_key_rotation(utc_now())
    else:
        fleet.rotate_key(utc_now(), at_once=at_once)
    newest = key_id(bytes.fromhex(fleet.register.signing_keys[0]))
    click.echo(f"{'the only' if finish else 'new'} signing key: {newest}; next:")
    click.echo(f"  give it to the coordinator:  {fleet.folder / COORDINATOR_FOLDER / SIGNING_FILE}")
    click.echo("  start the coordinator again; it goes on with its round")
    if at_once:
        click.echo(f"  for each device:             fedge broker rotate {fleet.folder} AGENT_ID")
    elif not finish:
        click.echo("  see who trusts it:           fedge coordinator status")
        click.echo(f"  when all do:                 fedge broker rotate-key {folder} --finish")


@click.command("list")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@command_errors
def list_devices(folder: Path, as_json: bool) -> None:
    """Show every certificate of the fleet's devices: name, serial, expiry, state."""
    from broker.security import Fleet, utc_now

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


COMMANDS = (init, enrol, revoke, rotate, rotate_key, list_devices)
