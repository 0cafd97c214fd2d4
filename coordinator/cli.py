"""The `fedge coordinator` commands."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import click

from fedge.console import CommandGroup, command_errors
from fedge.options import config_option, give_up_option

_CONFIG = config_option("YAML file of the federation.")


@click.group(cls=CommandGroup)
def cli() -> None:
    """Run a federation: publish the model, collect updates."""


@cli.command()
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
@give_up_option
@command_errors
def run(config_path: Path, as_json: bool, give_up_after: float | None) -> None:
    """Run the federation until its last round, or until stopped.

    Publishes model and weights, asks agents to train, aggregates what they send. Everything is
    kept in the state folder: started again, it goes on with the next round. The trained package is
    written to `model/` in that folder. With `task: statistics` nothing is trained: the table of
    columns is printed, and written to `statistics.json` there.
    """
    from coordinator.config import load_federation
    from coordinator.service import run_coordinator

    config = load_federation(config_path)
    result = run_coordinator(config, config_path.parent, as_json=as_json, give_up_s=give_up_after)
    if not as_json:
        click.echo(result)


@cli.command()
@_CONFIG
@click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
@command_errors
def status(config_path: Path, as_json: bool) -> None:
    """Show rounds, versions and agents from the state folder; works while it runs."""
    from coordinator.config import load_federation
    from coordinator.report import status_document, status_text
    from coordinator.service import known_spec
    from coordinator.storage.store import Store
    from fedge.yaml_config import located

    config = load_federation(config_path)
    with closing(Store.open_existing(located(config.state_dir, config_path.parent))) as store:
        spec = known_spec(config, config_path.parent)
        if as_json:
            click.echo(json.dumps(status_document(store, spec)))
        else:
            click.echo(status_text(store, config, spec))


@cli.command()
@_CONFIG
@click.option("--offline", is_flag=True, help="Leave the broker alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@command_errors
def doctor(config_path: Path, offline: bool, as_json: bool) -> None:
    """Look for what keeps this coordinator from running, and say what to do about it.

    Clock, certificates, name, TCP, TLS, login, access rights and speed of the broker; which agents
    are there; model, disk and store. Changes nothing (SQLite may tidy up its own files beside the
    store). A broker that goes by certificates may cut a running coordinator off: it comes back by
    itself within a minute.

    Ends with 0 when nothing failed, 2 when something here has to be mended, 3 when it is the broker
    or the way to it.
    """
    from coordinator.config import load_federation
    from coordinator.doctor import diagnose
    from fedge.check_result import report

    config = load_federation(config_path)
    sys.exit(report(diagnose(config, config_path.parent, offline=offline), as_json=as_json))
