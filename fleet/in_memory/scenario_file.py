"""Scenario of a YAML file, for people at work in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, did_you_mean
from fedge.handbook.example import examples
from fedge.handbook.shipped import shipped
from fleet.in_memory.result import Result
from fleet.in_memory.run import How, run, run_processes
from fleet.in_memory.values import plain
from fleet.runs.prepared import prepare
from fleet.runs.run import RunOptions
from fleet.scenario import load_scenario


class Scenario:
    """A scenario: data, model and federation in one YAML file (docs/simulation.md).

    Args:
        path: of the file; or the name of an example that ships with fedge.
        changes: values by dotted key, as `--set` takes them: `{"federation.rounds": 5}`.

    Raises:
        ConfigError: there is no such file, or it is wrong.

    Attributes:
        path: of the file.
        changes: to it.
    """

    def __init__(self, path: Path | str, changes: Mapping[str, Any] | None = None) -> None:
        self.path = _located(Path(path))
        self.changes = plain(changes or {})
        self._loaded  # noqa: B018  errors belong here

    @cached_property
    def _loaded(self) -> Any:
        try:
            return load_scenario(self.path, self.changes)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("--set ")) from error

    @property
    def name(self) -> str:
        """Name of the scenario."""
        return str(self._loaded.name)

    @property
    def description(self) -> str:
        """One line for people."""
        return str(self._loaded.description)

    def changed(self, changes: Mapping[str, Any]) -> Scenario:
        """Returns the scenario with more changes."""
        return Scenario(self.path, self.changes | plain(changes))

    def simulate(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        mode: str = "auto",
        processes: int | None = None,
        out: Path | str | None = None,
        progress: bool = True,
        hooks: Sequence[Any] = (),
    ) -> Result:
        """Simulates the scenario; arguments and errors as of `fedge.simulate`.

        Args:
            changes: further ones, for this run.
            mode, processes, out, progress, hooks: see there.
        """
        changed = self.changed(changes or {})
        how = How(mode, processes, None if out is None else Path(out), progress, hooks)
        return run(lambda _: (prepare(changed.path, changed.changes), None), how)

    def run(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        broker: str = "auto",
        out: Path | str | None = None,
        progress: bool = True,
        hooks: Sequence[Any] = (),
    ) -> Result:
        """Runs the scenario with real processes and a real broker on this machine.

        Args:
            changes: further ones, for this run.
            broker: auto, mosquitto, embedded, or mqtt://host:port.
            out: folder of report, logs and model; None: none is kept.
            progress: show a line of progress.
            hooks: see `fedge.simulate`.

        Raises:
            ConfigError: scenario, data, model or options are wrong.
            LinkError: the broker cannot be reached.
            FleetError: the run ended without a result.
            Interrupted: it was interrupted; has the result, once a round was committed.
        """
        changed = self.changed(changes or {})
        how = How(out=None if out is None else Path(out), progress=progress, hooks=hooks)
        return run_processes(
            changed.path, lambda out: RunOptions(out, changed.changes, broker), how
        )

    def __repr__(self) -> str:
        changes = f", {self.changes}" if self.changes else ""
        return f"<fedge.Scenario {self.name}: {self.description} ({self.path}{changes})>"


def _located(path: Path) -> Path:
    if path.exists():
        return path
    base = shipped("examples")
    known = {name: base / one.name for name, one in examples().items() if "/" not in one.name}
    if str(path) in known:
        return known[str(path)]
    hint = did_you_mean(path.stem, list(known))
    raise ConfigError(
        f"{path}: no such file, and no example of this name; {hint}examples: {', '.join(known)}"
    )
