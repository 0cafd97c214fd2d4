"""`fedge broker acl`: access rules for a broker that is there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from fedge.console import command_errors
from fedge.errors import ConfigError

if TYPE_CHECKING:
    from broker.security.access_control import Member


@click.command()
@click.argument("agent_ids", metavar="[AGENT_ID...]", nargs=-1)
@click.option("--federation", default="", help="Name of the federation.")
@click.option(
    "--coordinator",
    default="coordinator",
    show_default=True,
    metavar="USER",
    help="The coordinator's user name at the broker.",
)
@click.option(
    "--observer",
    "observers",
    multiple=True,
    metavar="USER",
    help="User who may read statuses and results (repeatable).",
)
@click.option(
    "--fleet",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Rules of this fleet instead: its members, by the names of their certificates.",
)
@click.option(
    "--format",
    "form",
    default="mosquitto",
    show_default=True,
    type=click.Choice(["mosquitto", "dynsec"]),
    help="mosquitto: an access-control file; dynsec: commands for the dynamic security plugin.",
)
@command_errors
def acl(
    agent_ids: Sequence[str],
    federation: str,
    coordinator: str,
    observers: Sequence[str],
    fleet: Path | None,
    form: Literal["mosquitto", "dynsec"],
) -> None:
    """Print access rules for a Mosquitto that you run already.

    An agent's user name is its AGENT_ID; without any, the rules of the file are for whatever user
    has an agent's name (%u). docs/security.md shows which settings of the broker go with them, and
    how to load them.
    """
    from broker.security.access_control import access_rules, agents_by_user_name

    if fleet is not None:
        if federation or agent_ids or observers:
            raise ConfigError("--fleet has its own federation and members: name nothing else")
        federation, members = _members_of(fleet)
    else:
        if not federation:
            raise ConfigError("name the federation with --federation, or a fleet with --fleet")
        members = _members(agent_ids, coordinator, observers)
    if form == "dynsec":
        if fleet is None and not agent_ids:
            raise ConfigError("the plugin has no rules for %u: name every AGENT_ID")
        click.echo(_plugin_commands(federation, members))
        return
    rules = access_rules(federation, members)
    if fleet is None and not agent_ids:
        rules += agents_by_user_name(federation)
    click.echo(rules, nl=False)


def _members(agent_ids: Sequence[str], coordinator: str, observers: Sequence[str]) -> list[Member]:
    from broker.security.access_control import COORDINATOR, Member, check_device_id

    members = [Member(coordinator, "coordinator", COORDINATOR)]
    members += [Member(name, "agent", check_device_id(name)) for name in agent_ids]
    members += [Member(name, "observer", "observer") for name in observers]
    logins = [member.login for member in members]
    for login in logins:
        if logins.count(login) > 1:
            raise ConfigError(f"user {login} is named twice: give each client its own")
    return members


def _members_of(folder: Path) -> tuple[str, list[Member]]:
    from broker.security.fleet import Fleet
    from broker.security.register import members

    register = Fleet(folder).register
    return register.federation, members(register)


def _plugin_commands(federation: str, members: Sequence[Member]) -> str:
    import msgspec

    from broker.security.mosquitto import dynamic_security

    want = dynamic_security.wanted(federation, members)
    made = dynamic_security.commands_for_users(federation, want)
    return msgspec.json.format(msgspec.json.encode({"commands": made}), indent=1).decode()
