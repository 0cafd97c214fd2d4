"""Help of the `fedge` command and its groups."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from fedge.command import cli


def groups() -> dict[str, click.Group]:
    found: dict[str, click.Group] = {}
    pending: list[tuple[tuple[str, ...], click.Command]] = [((), cli)]
    while pending:
        path, command = pending.pop()
        if not isinstance(command, click.Group):
            continue
        found[" ".join(path)] = command
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            pending.append(((*path, name), child))
    return found


@pytest.mark.parametrize("path", sorted(groups()))
def test_a_group_shows_the_whole_first_sentence_of_each_command(path: str) -> None:
    result = CliRunner().invoke(cli, [*path.split(), "--help"], terminal_width=80)
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    assert "..." not in shown.partition("Commands:")[2]
    group = groups()[path]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if path:  # of groups, `fedge` itself has its own words
            assert f"{name} {command.get_short_help_str(limit=1000)}" in shown
        else:
            assert f" {name} " in shown
