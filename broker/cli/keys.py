"""`fedge broker rotate-key`, `rotate-coordinator` and `rotate-broker`: key rotation."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.options import NO_RELOAD, update_broker
from fedge.console import command_errors

if TYPE_CHECKING:
    from broker.security.fleet import Fleet


@click.command("rotate-key")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--finish", is_flag=True, help="End the overlap: the old key stops signing.")
@click.option(
    "--checked",
    is_flag=True,
    help="With --finish: `fedge coordinator status` showed that all devices trust the new key.",
)
@click.option(
    "--at-once",
    is_flag=True,
    help="The old key is lost or stolen: no overlap, every device needs a new bundle.",
)
@command_errors
def rotate_key(folder: Path, finish: bool, checked: bool, at_once: bool) -> None:
    """Give the coordinator a new signing key.

    Until --finish ends the rotation, the coordinator signs with the old and the new key, and
    devices that trust the old key learn the new one. A device that is offline all that time needs a
    new bundle: so --finish is refused for a day, unless --checked says that all devices trust it.
    """
    from broker.protocol.signed_messages import key_id
    from broker.security import key_rotation
    from broker.security.fleet import Fleet, utc_now

    if finish and at_once:
        raise click.UsageError("--finish ends an overlap, --at-once has none: choose one")
    if checked and not finish:
        raise click.UsageError("--checked belongs to --finish")
    fleet = Fleet(folder)
    if finish:
        key_rotation.finish_rotation(fleet, utc_now(), checked=checked)
    else:
        key_rotation.rotate_key(fleet, utc_now(), at_once=at_once)
    newest = key_id(bytes.fromhex(fleet.register.signing_keys[0]))
    here = shlex.quote(str(fleet.folder))
    click.echo(f"{'the only' if finish else 'new'} signing key: {newest}; next:")
    click.echo(f"  give it to the coordinator:  {fleet.signing_file}")
    click.echo("  restart the coordinator; it continues its round")
    if at_once:
        click.echo(f"  for each device:             fedge broker rotate {here} AGENT_ID")
    elif not finish:
        click.echo("  see who trusts it:           fedge coordinator status")
        click.echo(
            f"  when all do:                 fedge broker rotate-key {here} --finish --checked"
        )


@click.command("rotate-coordinator")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@NO_RELOAD
@command_errors
def rotate_coordinator(folder: Path, no_reload: bool) -> None:
    """Give the coordinator a new TLS key and certificate, and revoke the old certificate.

    The old certificate has no rights any more: restart the coordinator at once with the new one.
    Devices need no change.
    """
    from broker.security import key_rotation
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    path = key_rotation.rotate_certificate(fleet, utc_now())
    update_broker(fleet, no_reload)
    click.echo("next:")
    click.echo(f"  give it to the coordinator:  {path}")
    click.echo("  restart the coordinator; it continues its round")


@click.command("rotate-broker")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host",
    "hosts",
    default="",
    metavar="NAME[,NAME|IP...]",
    help="New names and addresses (default: unchanged); new bundles name the first.",
)
@NO_RELOAD
@command_errors
def rotate_broker(folder: Path, hosts: str, no_reload: bool) -> None:
    """Give the broker a new key and certificate, also for other host names.

    Devices need no change if the name that they connect to is among the new ones. An old
    certificate of the broker cannot be revoked: devices check no list of revoked certificates.

    A running broker is sent SIGHUP, which Mosquitto 2.0 may not survive for long: there use
    --no-reload and restart it (docs/security.md).
    """
    from broker.security import key_rotation
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    before = fleet.register.hosts
    key_rotation.rotate_broker(fleet, utc_now(), [h.strip() for h in hosts.split(",") if hosts])
    click.echo(_reloaded(fleet, no_reload))
    now = fleet.register.hosts
    click.echo(f"the broker's certificate is for {', '.join(now)}")
    if gone := [host for host in before if host not in now]:
        click.echo(f"devices that connect to {' or '.join(gone)} refuse the broker")


def _reloaded(fleet: Fleet, no_reload: bool) -> str:
    from broker.security.access_control import PID_FILE
    from broker.security.mosquitto.reload import reload_mosquitto

    if no_reload:
        return "restart Mosquitto: until then it uses the old certificate"
    return reload_mosquitto(fleet.broker_folder / PID_FILE)
