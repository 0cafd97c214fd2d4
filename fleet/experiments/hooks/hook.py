"""Hook: follows one run from its configuration to its files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fedge.errors import ConfigError
from learning.registry import Settings


@dataclass(frozen=True)
class RunStart:
    """A run that begins.

    Attributes:
        group: name of the experiment, or of the scenario of a single run.
        name: of the run in its group: `case/seed`, or empty for a single run.
        base: folder that a hook's own relative paths are relative to.
        parameters: the configuration, flat: value by dotted key.
        varied: those that set the run apart from others of its group.
    """

    group: str
    name: str
    base: Path
    parameters: Mapping[str, Any]
    varied: Mapping[str, Any] = field(default_factory=dict)


class Hook(Protocol):
    """Follows one run; made with its settings for each run, before the run begins.

    An error of `begin`, `round` or `end` ends the hook and not the run. A constructor raises
    ConfigError where a package is missing: a run with such a hook does not begin.
    """

    settings_type: ClassVar[type[Settings]]

    def begin(self, run: RunStart) -> None:
        """Takes the configuration, before the first round."""

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """Takes the figures of a round that has ended: loss, metrics, bytes, seconds."""

    def end(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """Takes the final figures, and files and folders to keep; both empty after a failure."""


def need(module: str, package: str) -> None:
    """Checks that a package is installed, without importing it.

    Raises:
        ConfigError: it is not; says how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{package} is missing: pip install 'fedge[track]'")
