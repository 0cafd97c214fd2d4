"""`fedge broker rotate-key`, `rotate-coordinator`, `rotate-broker`: keys of the middle."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from broker.cli.options import NO_RELOAD, tell_broker
from fedge.console import command_errors


@click.command("rotate-key")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
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
    from broker.protocol.signed_messages import key_id
    from broker.security import key_rotation
    from broker.security.fleet import Fleet, utc_now

    if finish and at_once:
        raise click.UsageError("--finish ends an overlap, --at-once has none: choose one")
    fleet = Fleet(folder)
    if finish:
        key_rotation.finish_rotation(fleet, utc_now())
    else:
        key_rotation.rotate_key(fleet, utc_now(), at_once=at_once)
    newest = key_id(bytes.fromhex(fleet.register.signing_keys[0]))
    here = shlex.quote(str(fleet.folder))
    click.echo(f"{'the only' if finish else 'new'} signing key: {newest}; next:")
    click.echo(f"  give it to the coordinator:  {fleet.signing_file}")
    click.echo("  start the coordinator again; it goes on with its round")
    if at_once:
        click.echo(f"  for each device:             fedge broker rotate {here} AGENT_ID")
    elif not finish:
        click.echo("  see who trusts it:           fedge coordinator status")
        click.echo(f"  when all do:                 fedge broker rotate-key {here} --finish")


@click.command("rotate-coordinator")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@NO_RELOAD
@command_errors
def rotate_coordinator(folder: Path, no_reload: bool) -> None:
    """Give the coordinator a new key and certificate to connect with; the old one is revoked.

    Whoever is connected with the old one stays so until the coordinator connects with the new
    one: start it again at once. Devices need nothing.
    """
    from broker.security import key_rotation
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    path = key_rotation.rotate_certificate(fleet, utc_now())
    tell_broker(fleet, no_reload)
    click.echo("next:")
    click.echo(f"  give it to the coordinator:  {path}")
    click.echo("  start the coordinator again; it goes on with its round")


@click.command("rotate-broker")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host",
    "hosts",
    default="",
    metavar="NAME[,NAME|IP...]",
    help="Its names and addresses from now on (default: as before); new bundles have the first.",
)
@NO_RELOAD
@command_errors
def rotate_broker(folder: Path, hosts: str, no_reload: bool) -> None:
    """Give the broker a new key and certificate, for other host names too.

    Devices need nothing while the name by which they know the broker is among the new ones. An old
    certificate of the broker cannot be revoked: devices look at no list.
    """
    from broker.security import key_rotation
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    before = fleet.register.hosts
    key_rotation.rotate_broker(fleet, utc_now(), [h.strip() for h in hosts.split(",") if hosts])
    tell_broker(fleet, no_reload)
    now = fleet.register.hosts
    click.echo(f"the broker's certificate is for {', '.join(now)}")
    if gone := [host for host in before if host not in now]:
        click.echo(f"devices that look for it as {' or '.join(gone)} refuse it")
