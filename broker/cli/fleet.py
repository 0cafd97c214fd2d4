"""`fedge broker init`, `enrol`, `revoke`, `rotate`, `list`: a safe fleet."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from fedge.console import FiniteRange, command_errors, printable
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from broker.security.fleet import Fleet

#: Of a log: a topic may have 65,535 bytes.
_LONGEST_LINE = 100_000
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
_TOKEN = click.option(
    "--token",
    "as_token",
    is_flag=True,
    help="Print a one-time token instead: the device makes its own key.",
)
_VALID = click.option(
    "--valid",
    "valid_h",
    default=24.0,
    show_default=True,
    type=FiniteRange(0.01, 24 * 365),
    metavar="HOURS",
    help="That a token may be used.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
#: For commands that change who may do what.
NO_RELOAD = click.option(
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
@click.option(
    "--enrolment-port",
    default=0,
    type=click.IntRange(0, 65_535),
    help="Where devices with a token ask, while `serve-enrolment` runs (default: the next port).",
)
@click.option(
    "--websockets",
    default=0,
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Listen for WebSockets in TLS too, for devices behind firewalls (443; 0: do not).",
)
@click.option("--bind", default="", help="Address to listen on (default: all of this machine).")
@click.option(
    "--user",
    default="",
    help="Account that Mosquitto runs under (default: you; for root: mosquitto).",
)
@command_errors
def init(
    folder: Path,
    hosts: str,
    federation: str,
    port: int,
    enrolment_port: int,
    websockets: int,
    bind: str,
    user: str,
) -> None:
    """Make the certificates and the Mosquitto configuration of a new fleet in DIR.

    Everything is made or nothing. On a folder that holds this fleet already it changes nothing and
    says what is there. DIR/authority/ca.key is the fleet's master key: keep a copy in a safe place.
    """
    from broker.security.fleet import Fleet, FleetSettings, create_fleet, utc_now
    from broker.security.fleet_layout import REGISTER_FILE

    names = [name.strip() for name in hosts.split(",")]
    settings = FleetSettings(federation, names, port, bind, user, enrolment_port, websockets)
    if (folder / REGISTER_FILE).exists():
        fleet = Fleet(folder)
        fleet.check_same(settings)
        _say_what_is_there(fleet)
    else:
        fleet = create_fleet(folder, settings, utc_now())
        click.echo(f"fleet {federation!r} made in {fleet.folder}; next:")
    _say_next(fleet)


def _say_what_is_there(fleet: Fleet) -> None:
    from broker.security.fleet import utc_now
    from broker.security.reload_mosquitto import reads_elsewhere

    now = utc_now()
    active = {r.agent_id for r in fleet.register.devices if r.state(now) == "active"}
    click.echo(
        f"{fleet.folder} holds fleet {fleet.register.federation!r} with {len(active)} devices"
        " enrolled; nothing was changed"
    )
    if elsewhere := reads_elsewhere(fleet.broker_folder):
        click.echo(elsewhere, err=True)


def _say_next(fleet: Fleet) -> None:
    from broker.security import access_control
    from broker.security.fleet_layout import COORDINATOR_FOLDER, IDENTITY_FILE, SIGNING_FILE

    middle, config = (
        fleet.folder / COORDINATOR_FOLDER,
        fleet.broker_folder / access_control.CONFIG_FILE,
    )
    identity = str(middle / IDENTITY_FILE)
    tls = {
        "ca_file": str(middle / access_control.CA_FILE),
        "cert_file": identity,
        "key_file": identity,
    }
    section = {"host": fleet.register.hosts[0], "port": fleet.register.port, "tls": tls}
    for_yaml = {"broker": section, "signing_key": str(middle / SIGNING_FILE)}
    broker, signing = (_yaml_line({key: value}) for key, value in for_yaml.items())
    folder = shlex.quote(str(fleet.folder))
    click.echo(f"  start the broker:     mosquitto -c {shlex.quote(str(config))}")
    click.echo(f"  in coordinator.yaml:  {broker}")
    click.echo(f"                        {signing}")
    click.echo(f"  for each device:      fedge broker enrol {folder} AGENT_ID")
    click.echo(f"  or, with a token:     fedge broker enrol {folder} AGENT_ID --token")
    if port := fleet.register.websockets:
        click.echo("  through WebSockets:   on the device: fedge agent enrol BUNDLE --websockets")
        click.echo(f"                        they listen on port {port}, with TLS")
    _warn_of_closed_folder(fleet)


def _warn_of_closed_folder(fleet: Fleet) -> None:
    """Mosquitto would say no more than that it cannot write its pid file."""
    from fedge.files import Account

    above, user = fleet.folder.parent, fleet.register.user
    with contextlib.suppress(ConfigError):  # the account is of another machine
        if not Account.for_files(user).may_enter(above):
            click.echo(
                f"{above} is closed to user {user}, so Mosquitto cannot run from this folder here: "
                "make the fleet elsewhere (/var/lib/fedge-fleet), or copy its broker folder",
                err=True,
            )


def _yaml_line(section: dict[str, object]) -> str:
    """A key on one line, however long."""
    text: str = yaml.safe_dump(
        section, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.strip()[1:-1]  # a mapping without its braces


@click.command()
@_FOLDER
@click.argument("agent_ids", metavar="AGENT_ID...", nargs=-1, required=True)
@_OUT
@_DAYS
@_TOKEN
@_VALID
@click.option(
    "--again",
    is_flag=True,
    help="Take names of revoked devices too; only after Mosquitto was restarted.",
)
@_JSON
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
    from broker.security.fleet import Fleet, utc_now

    if out is not None and (as_token or len(agent_ids) > 1):
        raise ConfigError("--out is for one bundle")
    fleet = Fleet(folder)
    if as_token:
        valid = timedelta(hours=valid_h)
        _print_tokens(fleet, agent_ids, valid, days, as_json=as_json, again=again)
    else:
        paths = fleet.enrol_all(agent_ids, utc_now(), out, days, again=again)
        found = list(zip(agent_ids, paths, strict=True))
        if as_json:
            click.echo(json.dumps([{"agent_id": n, "bundle": str(p)} for n, p in found]))
        else:
            click.echo("\n".join(f"bundle of {name}: {path}" for name, path in found))
    if again:
        _warn_of_websockets(fleet)
    tell_broker(fleet, no_reload, quiet=as_json)


def _print_tokens(
    fleet: Fleet,
    agent_ids: Sequence[str],
    valid: timedelta,
    days: int,
    *,
    as_json: bool,
    **options: bool,
) -> None:
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
        click.echo(f"token of {token.agent_id}, good once, until {until}:\n{token}")
    click.echo("next:")
    click.echo(f"  here:           fedge broker serve-enrolment {shlex.quote(str(fleet.folder))}")
    click.echo("  on the device:  fedge agent enrol TOKEN --dir DIR")


@click.command()
@_FOLDER
@_AGENT
@_OUT
@_DAYS
@click.option("--keep-old", is_flag=True, help="The old certificate stays valid until the next.")
@_TOKEN
@_VALID
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
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    if as_token:
        if out is not None:
            raise ConfigError("--out is for a bundle")
        options = {"as_json": False, "replaces": True, "keep_old": keep_old}
        _print_tokens(fleet, [agent_id], timedelta(hours=valid_h), days, **options)
        _warn_of_websockets(fleet)
        return  # nothing has changed for the broker yet
    path = fleet.rotate(agent_id, utc_now(), out, days, keep_old=keep_old)
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
@_FOLDER
@_AGENT
@NO_RELOAD
@command_errors
def revoke(folder: Path, agent_id: str, no_reload: bool) -> None:
    """Shut a device out: a running broker is told, nobody else notices.

    If it is connected it can neither send nor receive from then on; once its connection ends it
    gets no other.
    """
    from broker.security.fleet import Fleet, utc_now

    fleet = Fleet(folder)
    fleet.revoke(agent_id, utc_now())
    click.echo(f"revoked: {agent_id}")
    tell_broker(fleet, no_reload)


def tell_broker(fleet: Fleet, no_reload: bool, *, quiet: bool = False) -> None:
    """Has a running broker read its rules again, and says so (`quiet`: on stderr)."""
    from broker.security.access_control import PID_FILE
    from broker.security.reload_mosquitto import reads_elsewhere, reload_mosquitto

    if no_reload:
        said = reads_elsewhere(fleet.broker_folder) or (
            "the broker was not told: it takes effect when it is started again"
        )
    else:
        said = reload_mosquitto(fleet.broker_folder / PID_FILE)
    click.echo(said, err=quiet)


@click.command("list")
@_FOLDER
@_JSON
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
@_FOLDER
@click.option("--withdraw", metavar="AGENT_ID", help="End this device's open token first.")
@_JSON
@command_errors
def tokens(folder: Path, withdraw: str | None, as_json: bool) -> None:
    """Show the tokens of the last month: for whom, until when, and what became of them.

    The tokens themselves are kept nowhere: who lost one needs a new one.
    """
    from broker.enrolment import invitations
    from broker.security.fleet import Fleet, utc_now

    now, fleet = utc_now(), Fleet(folder)
    if withdraw is not None:
        invitations.withdraw(fleet, withdraw, now)
        click.echo(f"withdrawn: {withdraw}", err=True)
    rows = [
        {
            "agent_id": one.agent_id,
            "state": one.state(now),
            "expires": one.expires.isoformat(),
            "replaces": one.replaces,
            "serial": one.serial,
        }
        for one in fleet.register.invitations
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max((len(str(row["agent_id"])) for row in rows), default=0)
    for row in rows:
        until = str(row["expires"])[:16].replace("T", " ")
        click.echo(f"{row['agent_id']:{width}}  {row['state']:9}  {until} UTC  {row['serial']}")
    if not rows:
        click.echo("no token was made")


@click.command()
@_FOLDER
@click.argument("log", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@command_errors
def refusals(folder: Path, log: str) -> None:
    """Say in plain words who tried what it may not, from Mosquitto's log (a file, or stdin).

    Refused publications, wills and subscriptions are in the log when `log_type debug` and
    `log_type subscribe` are in DIR/broker/mosquitto.conf; refused connections always.
    """
    from broker.security.fleet import Fleet
    from broker.security.log_reader import Refusals

    reader = Refusals(Fleet(folder).register.federation)
    try:
        with click.open_file(log, errors="replace") as file:
            while line := file.readline(_LONGEST_LINE):
                if said := reader.read(line):
                    click.echo(printable(said))
    except OSError as error:
        raise ConfigError(f"{log} cannot be read: {error.strerror}") from error


@click.command("serve-enrolment")
@_FOLDER
@click.option(
    "--for",
    "for_min",
    type=FiniteRange(min=0.01),
    metavar="MINUTES",
    help="End by itself after so long (default: until Ctrl-C or SIGTERM).",
)
@command_errors
def serve_enrolment(folder: Path, for_min: float | None) -> None:
    """Let devices with a token in: answers on the enrolment port until stopped.

    Runs a Mosquitto of its own, which knows nothing of the fleet's. It signs certificates, so it
    reads DIR/authority/ca.key: run it while devices are being installed, not for ever.
    """
    from broker.enrolment.service import serve_enrolment
    from broker.link.settings import BrokerSettings
    from broker.security.fleet import Fleet
    from broker.security.reload_mosquitto import reads_elsewhere

    fleet = Fleet(folder)
    register = fleet.register
    if elsewhere := reads_elsewhere(fleet.broker_folder):
        click.echo(elsewhere, err=True)
    where = BrokerSettings(host=register.hosts[0], port=register.enrolment_port).address
    click.echo(f"devices with a token may ask on {where} (Ctrl-C ends it)", err=True)
    serve_enrolment(fleet, None if for_min is None else 60 * for_min)


COMMANDS = (init, enrol, revoke, rotate, list_devices, tokens, serve_enrolment, refusals)
