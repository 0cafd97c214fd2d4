"""`fedge broker init`: creates a fleet and prints the next steps."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from broker.cli.options import FOLDER
from fedge.console import command_errors
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from broker.security.fleet import Fleet


@click.command()
@FOLDER
@click.option(
    "--host",
    "hosts",
    required=True,
    metavar="NAME[,NAME|IP...]",
    help="Names and addresses of the broker; devices use the first.",
)
@click.option("--federation", default="fleet", show_default=True, help="Name of the federation.")
@click.option(
    "--port",
    default=8883,
    show_default=True,
    type=click.IntRange(1, 65_535),
    help="Port of the broker, with TLS.",
)
@click.option(
    "--enrolment-port",
    default=0,
    type=click.IntRange(0, 65_535),
    help="Port of `serve-enrolment`, for devices with a token (default: the next port).",
)
@click.option(
    "--websockets",
    default=0,
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Listen for WebSockets in TLS too, for devices behind firewalls (443; 0: do not).",
)
@click.option(
    "--access",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "plugin", "file"]),
    help="How Mosquitto learns of changes: with its dynamic security plugin, at run time; or from a"
    " file, with SIGHUP. auto: the plugin if this machine has it.",
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
    access: str,
    bind: str,
    user: str,
) -> None:
    """Make the certificates and the Mosquitto configuration of a new fleet in DIR.

    All files are made, or none. If DIR holds this fleet already, the command changes nothing and
    prints its state. DIR/authority/ca.key is the fleet's master key: keep a copy in a safe place.
    """
    from broker.security.create_fleet import create_fleet
    from broker.security.fleet import Fleet, utc_now
    from broker.security.fleet_layout import REGISTER_FILE
    from broker.security.fleet_settings import FleetSettings

    names = [name.strip() for name in hosts.split(",")]
    settings = FleetSettings(
        federation, names, port, bind, user, enrolment_port, websockets, _plugin(access)
    )
    if (folder / REGISTER_FILE).exists():
        fleet = Fleet(folder)
        if access == "auto":  # whatever it was made with
            settings = replace(settings, plugin="")
        fleet.check_same(settings)
        _print_state(fleet)
    else:
        fleet = create_fleet(folder, settings, utc_now())
        click.echo(f"fleet {federation!r} made in {fleet.folder}; next:")
    _print_next_steps(fleet)


def _plugin(access: str) -> str:
    from broker.security.mosquitto.config import find_plugin

    plugin = "" if access == "file" else find_plugin()
    if access == "plugin" and not plugin:
        raise ConfigError(
            "--access plugin: mosquitto_dynamic_security.so is not on this machine: install "
            "Mosquitto (apt install mosquitto), or use --access file"
        )
    return plugin


def _print_state(fleet: Fleet) -> None:
    from broker.security.fleet import utc_now
    from broker.security.mosquitto.reload import warn_if_moved

    now = utc_now()
    active = {r.agent_id for r in fleet.register.devices if r.state(now) == "active"}
    click.echo(
        f"{fleet.folder} holds fleet {fleet.register.federation!r} with {len(active)} devices"
        " enrolled; nothing was changed"
    )
    if warning := warn_if_moved(fleet.broker_folder):
        click.echo(warning, err=True)


def _print_next_steps(fleet: Fleet) -> None:
    from broker.security import access_control
    from broker.security.fleet_layout import COORDINATOR_FOLDER, IDENTITY_FILE, SIGNING_FILE

    coordinator = fleet.folder / COORDINATOR_FOLDER
    identity = str(coordinator / IDENTITY_FILE)
    tls = {
        "ca_file": str(coordinator / access_control.CA_FILE),
        "cert_file": identity,
        "key_file": identity,
    }
    section = {"host": fleet.register.hosts[0], "port": fleet.register.port, "tls": tls}
    for_yaml = {"broker": section, "signing_key": str(coordinator / SIGNING_FILE)}
    broker, signing = (_yaml_line({key: value}) for key, value in for_yaml.items())
    folder = shlex.quote(str(fleet.folder))
    click.echo(f"  start the broker:     fedge broker run {folder}")
    click.echo(f"  in coordinator.yaml:  {broker}")
    click.echo(f"                        {signing}")
    click.echo(f"  for each device:      fedge broker enrol {folder} AGENT_ID")
    click.echo(f"  or, with a token:     fedge broker enrol {folder} AGENT_ID --token")
    if port := fleet.register.websockets:
        click.echo("  through WebSockets:   on the device: fedge agent enrol BUNDLE --websockets")
        click.echo(f"                        they listen on port {port}, with TLS")
    _warn_if_inaccessible(fleet)


def _warn_if_inaccessible(fleet: Fleet) -> None:
    """Warns that Mosquitto cannot enter the folder; it only reports a missing pid file itself."""
    from fedge.files import Account

    above, user = fleet.folder.parent, fleet.register.user
    with contextlib.suppress(ConfigError):  # no such account on this machine
        if not Account.for_files(user).may_enter(above):
            click.echo(
                f"user {user} cannot enter {above}, so Mosquitto cannot run from this folder: make "
                "the fleet elsewhere (/var/lib/fedge-fleet), or copy its broker folder",
                err=True,
            )


def _yaml_line(section: dict[str, object]) -> str:
    """Returns a mapping as one line of YAML, however long."""
    text: str = yaml.safe_dump(
        section, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.strip()[1:-1]  # a mapping without its braces
