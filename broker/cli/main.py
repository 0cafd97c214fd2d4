"""`fedge broker`: local MQTT brokers for experiments, secure brokers for fleets."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import click

from broker.cli.access import acl
from broker.cli.enrolment import serve_enrolment, tokens
from broker.cli.fleet import enrol, list_devices, refusals, revoke, rotate, sync
from broker.cli.init import init
from broker.cli.keys import rotate_broker, rotate_coordinator, rotate_key
from broker.cli.run_fleet import run_fleet_broker
from broker.local.broker import HOST, Kind, LocalBroker
from fedge.console import CommandGroup, command_errors
from fedge.errors import LinkError


@click.group(cls=CommandGroup)
def cli() -> None:
    """Run an MQTT broker for experiments; make and manage a secure one for a fleet."""


for command in (
    *(init, enrol, revoke, rotate, sync, list_devices, acl, tokens, serve_enrolment, refusals),
    *(rotate_key, rotate_coordinator, rotate_broker),
):
    cli.add_command(command)


@cli.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--port",
    default=1883,
    show_default=True,
    type=click.IntRange(1, 65_535),
    help="Port to listen on, for clients of this machine.",
)
@click.option(
    "--kind",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    help="auto: Mosquitto if it is installed, else the embedded broker.",
)
@click.option("--json", "as_json", is_flag=True, help="Print address, kind and pid as JSON.")
@command_errors
def run(folder: Path | None, port: int, kind: Kind, as_json: bool) -> None:
    """Run a broker in the foreground until Ctrl-C or SIGTERM.

    With DIR: Mosquitto of the fleet in DIR (`fedge broker init`), started again if it ends by
    itself. Options are for a broker without DIR: only this machine can reach it, it has no password
    and stores nothing on disk.
    """
    if folder is not None:
        run_fleet_broker(folder)
        return
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with LocalBroker(kind, port) as broker:
        click.echo(_json(broker) if as_json else _greeting(broker))
        while not stop.wait(0.2):
            code = broker.wait(0)
            # Ctrl-C reaches the whole process group: the broker may end before this process.
            if code is not None and not stop.wait(0.2):
                raise LinkError(f"the {broker.kind} broker ended by itself (exit code {code})")


def _json(broker: LocalBroker) -> str:
    return json.dumps({"host": HOST, "port": broker.port, "kind": broker.kind, "pid": broker.pid})


def _greeting(broker: LocalBroker) -> str:
    name = {"mosquitto": "Mosquitto", "embedded": "the embedded broker"}[broker.kind]
    return (
        f"{name} listens on {HOST}:{broker.port} (this machine only; Ctrl-C stops it)\n"
        f"  in a configuration file:  broker: {{host: {HOST}, port: {broker.port}}}\n"
        f"  watch everything:         mosquitto_sub -h {HOST} -p {broker.port} -t '#' -v"
    )
