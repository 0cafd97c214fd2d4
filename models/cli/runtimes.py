"""`fedge model runtimes` and the option `--runtime`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from fedge.console import command_errors
from fedge.errors import ModelError
from models.runtime.wheels import WHEELS, install_advice, missing_wheel_reason

#: `--runtime NAME`; None: configuration or environment name it, else the first installed is taken.
runtime_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--runtime",
    type=click.Choice(list(WHEELS)),
    help="TFLite interpreter (default: the configured one, else the first installed).",
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@command_errors
def runtimes(as_json: bool) -> None:
    """Show the TFLite interpreters: installed, taken, and available for this machine.

    They are tried in this order; `runtime` in agent.yaml, --runtime and the environment variable
    FEDGE_RUNTIME choose another. Ends with code 2 when none works.
    """
    from models.runtime.interpreters import (
        available_runtimes,
        find_runtime,
        runtime_version,
        this_platform,
    )

    here = this_platform()
    try:
        taken, trouble = find_runtime(None)[1].partition(" ")[0], ""
    except ModelError as error:
        taken, trouble = "", str(error)
    installed = {name: runtime_version(name) for name in available_runtimes()}
    if as_json:
        report = {
            "machine": here.machine,
            "python": ".".join(map(str, here.python)),
            "libc": here.libc,
            "libc_version": ".".join(map(str, here.libc_version)),
            "taken": taken,
            "installed": installed,
            "no_wheel": {
                name: text for name in WHEELS if (text := missing_wheel_reason(name, here))
            },
            "advice": install_advice(here),
        }
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo(f"{'here':<15} {here}")
        for name in WHEELS:
            state = (
                installed.get(name)
                or f"not installed; {missing_wheel_reason(name, here) or 'has a wheel'}"
            )
            click.echo(f"{name:<15} {state}{', taken' if name == taken else ''}")
    if trouble:
        raise ModelError(trouble)
