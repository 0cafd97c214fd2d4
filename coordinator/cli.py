"""The `fedge coordinator` commands."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedge.console import CommandGroup, command_errors
from fedge.errors import ConfigError
from fedge.options import config_option, give_up_option

if TYPE_CHECKING:
    from coordinator.storage.orders import Order

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
    from coordinator.operate import ROLE
    from coordinator.report import status_document, status_text
    from coordinator.service import known_spec
    from coordinator.storage.store import Store
    from fedge.files import holder
    from fedge.yaml_config import located

    config = load_federation(config_path)
    with closing(Store.open_existing(located(config.state_dir, config_path.parent))) as store:
        spec = known_spec(config, config_path.parent)
        process = holder(store.path.parent, ROLE)
        if as_json:
            click.echo(json.dumps(status_document(store, spec, process)))
        else:
            click.echo(status_text(store, config, spec, process))


@cli.command()
@_CONFIG
@click.option("--last", type=click.IntRange(1), default=20, help="So many rounds (default 20).")
@click.option("--json", "as_json", is_flag=True, help="With everything that is known of each.")
@command_errors
def history(config_path: Path, last: int, as_json: bool) -> None:
    """Show versions with their figures, who made them, and the bytes of their rounds."""
    from coordinator.config import load_federation
    from coordinator.history import history_document, history_text
    from coordinator.service import known_spec
    from coordinator.storage.store import Store
    from fedge.yaml_config import located

    config = load_federation(config_path)
    with closing(Store.open_existing(located(config.state_dir, config_path.parent))) as store:
        if as_json:
            click.echo(json.dumps(history_document(store, last)))
        else:
            click.echo(history_text(store, last, known_spec(config, config_path.parent)))


@cli.command()
@_CONFIG
@click.option("--to", "version", type=click.IntRange(0), required=True, help="Version to take.")
@command_errors
def rollback(config_path: Path, version: int) -> None:
    """Go on from an earlier version: its weights and state become a new version.

    Numbers are not used again: the rounds since stay in the records, as undone. Updates that are
    under way are refused, devices drop what belongs to the undone versions. A coordinator that
    runs does it within seconds, in the middle of a round too.
    """
    from coordinator.storage.orders import Rollback

    _give(config_path, Rollback(version))


@cli.command()
@_CONFIG
@click.argument("agent_id", metavar="AGENT")
@command_errors
def forget(config_path: Path, agent_id: str) -> None:
    """Delete what is known of an agent, and say what cannot be undone.

    Its status, its counts and its part in records. What it gave to versions stays in these.
    """
    from coordinator.storage.orders import Forget

    _give(config_path, Forget(agent_id))


@cli.command()
@_CONFIG
@click.argument("agent_id", metavar="AGENT")
@click.option("--reason", default="by an operator", help="Words for the others who look after it.")
@command_errors
def quarantine(config_path: Path, agent_id: str, reason: str) -> None:
    """Ask an agent no more, and count nothing that it sends, until it is released."""
    from coordinator.storage.orders import Quarantine

    _give(config_path, Quarantine(agent_id, reason))


@cli.command()
@_CONFIG
@click.argument("agent_id", metavar="AGENT")
@command_errors
def release(config_path: Path, agent_id: str) -> None:
    """Ask an agent again that is in quarantine."""
    from coordinator.storage.orders import Release

    _give(config_path, Release(agent_id))


@cli.command()
@_CONFIG
@click.argument("file", type=click.Path(path_type=Path))
@command_errors
def backup(config_path: Path, file: Path) -> None:
    """Write the federation's state into one file, also while the coordinator runs.

    Versions with the algorithm's state, records and agents: all that `restore` needs. Not the open
    round, which is held anew, and neither keys nor model nor configuration: the command names them.
    """
    from coordinator.config import load_federation
    from coordinator.report import bytes_text
    from coordinator.storage.backup import back_up
    from fedge.yaml_config import located

    config, base = load_federation(config_path), config_path.parent
    size = back_up(located(config.state_dir, base), file)
    click.echo(f"{file}: {bytes_text(size)}")
    others = [config_path, *(located(path, base) for path in config.plugins)]
    others += [folder for folder in [located(config.model, base)] if folder.is_dir()]
    others += [] if config.signing_key is None else [located(config.signing_key, base)]
    click.echo(f"not in it, keep copies: {', '.join(map(str, others))}")


@cli.command()
@_CONFIG
@click.argument("file", type=click.Path(path_type=Path))
@command_errors
def restore(config_path: Path, file: Path) -> None:
    """Put a backup into the empty state folder, to go on from there.

    Rounds since the backup are lost. The federation goes on in a new session: updates that are
    under way belong to the lost rounds and are refused.
    """
    from coordinator.config import load_federation
    from coordinator.operate import restore
    from coordinator.service import find_package
    from fedge.yaml_config import located

    config, base = load_federation(config_path), config_path.parent
    package = find_package(config.model, base)
    click.echo("\n".join(restore(config, located(config.state_dir, base), package, file)))


def _give(config_path: Path, order: Order) -> None:
    import msgspec

    from coordinator.config import load_federation
    from coordinator.operate import give
    from coordinator.service import find_package
    from fedge.yaml_config import located

    try:
        msgspec.convert(msgspec.to_builtins(order), type=type(order))
    except msgspec.ValidationError as error:
        limits = "AGENT: 1 to 64 letters, digits, - and _; --reason: up to 500 characters"
        raise ConfigError(f"{limits} ({error})") from error
    config, base = load_federation(config_path), config_path.parent
    package = find_package(config.model, base)
    outcome = give(config, located(config.state_dir, base), package, order)
    if not outcome.is_done:
        raise ConfigError(outcome.text)
    click.echo(outcome.text)


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
