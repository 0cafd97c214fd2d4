"""Calls the hooks of a run; a hook that fails is left out from then on, and the run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fedge.errors import ConfigError, one_line
from fleet.experiments.experiment import load_experiment
from fleet.experiments.hooks.hook import Hook, RunStart
from fleet.experiments.hooks.registry import HOOKS
from fleet.experiments.pictures.draw import make_view, write_picture
from fleet.experiments.results import REPORT_FILE, flat_round, load_report
from fleet.participants import Participants
from fleet.runs.record import resolved_configuration
from fleet.runs.watcher import Watcher
from learning.registry import Choice

#: Keys of a round that are no curve.
_NO_FIGURES = ("round", "status", "version", "asked", "refused", "stale", "evaluated")
_PICTURES = ("curves", "agents", "confusion")
CONFIGURATION_FILE = "configuration.yaml"


class Followed:
    """Watcher that hands everything on, and calls hooks.

    Args:
        watcher: that shows the run.
        choices: of hooks, as in a grid file.
        out: folder of the run.
        group: see `RunStart`; empty: the scenario's name.
        name: see `RunStart`.
        base: see `RunStart`; None: the run's folder.
        varied: see `RunStart`.

    Raises:
        ConfigError: a hook is unknown, its settings are wrong, or its package is missing.
    """

    def __init__(
        self,
        watcher: Watcher,
        choices: Sequence[Choice],
        out: Path,
        *,
        group: str = "",
        name: str = "",
        base: Path | None = None,
        varied: Mapping[str, Any] | None = None,
    ) -> None:
        self._watcher = watcher
        self._hooks: dict[str, Hook] = {}
        for choice in choices:
            settings = HOOKS.settings(choice)
            label = settings.name if settings.name not in self._hooks else repr(choice)
            self._hooks[label] = HOOKS.make(settings)
        self._out = out
        self._start = RunStart(group, name, base or out, {}, varied or {})

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._watcher.begin(participants, config, broker)
        start = self._start
        settings = flattened(resolved_configuration(participants.scenario, config))
        parameters = {**start.varied, **settings}
        group = start.group or participants.scenario.name
        start = RunStart(group, start.name, start.base, parameters, start.varied)
        self._each("at the start", lambda hook: hook.begin(start))

    def round(self, record: RoundRecord) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._watcher.round(record)
        values = figures(record)
        number = record.round_id
        self._each(f"in round {number}", lambda hook: hook.round(number, values))

    def waiting(self, eligible: int, wanted: int) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._watcher.waiting(eligible, wanted)

    def note(self, text: str) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._watcher.note(text)

    def working(self, what: str, done: int, of: int) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._watcher.working(what, done, of)

    def end(self, *, is_done: bool) -> None:
        """Ends the hooks, with the report, the model and pictures of a run that is done."""
        if not self._hooks:
            return
        values = _final(self._out) if is_done else {}
        files = _artifacts(self._out) if is_done else []
        self._each("at the end", lambda hook: hook.end(values, files))

    def _each(self, when: str, call: Callable[[Hook], None]) -> None:
        for label, hook in list(self._hooks.items()):
            try:
                call(hook)
            except Exception as error:  # noqa: BLE001  whatever a hook's package raises
                del self._hooks[label]
                why = f"{type(error).__name__}: {one_line(error)}"
                self._watcher.note(f"hook {label} failed {when}: {why}; the run goes on without it")


@contextmanager
def following(watcher: Watcher, choices: Sequence[Choice], out: Path) -> Iterator[Watcher]:
    """Yields a watcher that calls hooks, and ends them with the run in the folder `out`.

    Raises:
        ConfigError: see `Followed`.
    """
    followed = Followed(watcher, choices, out)
    is_done = False
    try:
        yield followed
        is_done = True
    finally:
        followed.end(is_done=is_done)


def flattened(document: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns a nested configuration as value by dotted key; lists of plain values stay whole."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{name}.")
        elif value not in (None, "", [], ()):
            flat[name] = value
    return flat


def figures(record: RoundRecord) -> dict[str, float]:
    """Returns what a hook is told of a round: finite numbers by name.

    Loss and metrics of a round that evaluated nothing are named `train_…` alone.
    """
    known = flat_round(msgspec.to_builtins(record.summary))
    return _finite({name: known[name] for name in known if name not in _NO_FIGURES})


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}


def _final(out: Path) -> dict[str, float]:
    return _finite(load_report(out).final)


def _artifacts(out: Path) -> list[Path]:
    """Returns what a run leaves behind, its pictures included where matplotlib can draw them."""
    kept = [out / REPORT_FILE, out / CONFIGURATION_FILE, out / "model"]
    files = [file for file in kept if file.exists()]
    for kind in _PICTURES:
        path = out / "pictures" / f"{kind}.png"
        try:
            write_picture(make_view(load_experiment(out / REPORT_FILE), kind), kind, path)
        except ConfigError:  # no matplotlib, or nothing of this kind to draw
            continue
        files.append(path)
    return files
