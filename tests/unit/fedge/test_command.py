"""Help of the `fedge` command and its groups."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from fedge.command import cli


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    pending: list[tuple[tuple[str, ...], click.Command]] = [((), cli)]
    while pending:
        path, command = pending.pop()
        found[" ".join(path)] = command
        if not isinstance(command, click.Group):
            continue
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            pending.append(((*path, name), child))
    return found


def groups() -> dict[str, click.Group]:
    return {path: one for path, one in commands().items() if isinstance(one, click.Group)}


def test_every_option_says_what_it_does() -> None:
    silent = [
        f"{path} {option.opts[0]}"
        for path, command in commands().items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not silent


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
