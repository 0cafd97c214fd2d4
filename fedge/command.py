"""`fedge` command: a group that imports a part only when its command is called."""

from __future__ import annotations

import importlib
from typing import Any

import click

from fedge import __version__

_COMMANDS = {
    "agent": ("edge_agent.cli", "Train on this device's data for a federation."),
    "coordinator": ("coordinator.cli", "Run a federation: publish the model, collect updates."),
    "broker": ("broker.cli.main", "Run and check MQTT brokers."),
    "model": ("models.cli.main", "Export, list, inspect and release models."),
    "fleet": ("fleet.cli.main", "Run a whole fleet on this machine."),
    "experiment": ("fleet.cli.experiment", "Run grids of federations: tables, pictures."),
    "docs": ("fedge.handbook.docs", "Show the documentation."),
    "example": ("fedge.handbook.example", "Write an experiment with real data, ready to run."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).cli
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedge")
def cli() -> None:
    """Federated learning for fleets of small devices, over plain MQTT."""


def main(**extra: Any) -> None:
    """Runs the console script."""
    cli(**extra)
