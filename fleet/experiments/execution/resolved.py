"""Resolved configuration of a run: every key with its value, and digests of the files it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.data.files import data_files
from fedge.errors import ConfigError
from fedge.yaml_config import located
from fleet.baselines import check_baselines
from fleet.batched.mode import choose_mode
from fleet.runs.record import file_sha256, resolved_configuration
from fleet.scenario import (
    Scenario,
    coordinator_config,
    load_scenario,
    plugin_paths,
    source_package,
)
from models.package.package import ModelPackage


@dataclass(frozen=True, eq=False)
class Resolved:
    """What the runs of one case are made of.

    Attributes:
        path: of the scenario.
        scenario: with all changes but the seed.
        engine: simulate or run.
        options: that are no changes of the scenario; JSON-ready.
        package: the model before training.
    """

    path: Path
    scenario: Scenario
    engine: str
    options: Mapping[str, Any]
    package: ModelPackage

    @property
    def metrics(self) -> list[str]:
        """Names that learning curves of the model can have, the loss among them."""
        return ["loss", *(metric.name for metric in self.package.spec.metrics)]

    @property
    def rounds(self) -> int:
        """Number of rounds at most."""
        return coordinator_config(self.scenario, self.path).rounds

    def document(self, seed: int) -> dict[str, Any]:
        """Returns everything that the result of a run depends on; JSON-ready.

        Args:
            seed: of the run.

        Raises:
            ConfigError: a file cannot be read.
        """
        return {
            "seed": seed,
            "engine": self.engine,
            "options": dict(self.options),
            "scenario": str(self.path),
            "configuration": self._configuration(seed),
            "package": self.package.digest,
            "files": self._files,
        }

    def value(self, key: str) -> Any:
        """Returns the value of a dotted key, `federation.` left out or not; None: it has none."""
        configuration = self._configuration(0)
        for top in (configuration, configuration["federation"]):
            found: Any = top
            for part in key.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return None

    def _configuration(self, seed: int) -> dict[str, Any]:
        scenario = msgspec.structs.replace(self.scenario, seed=seed)
        return resolved_configuration(scenario, coordinator_config(scenario, self.path))

    @cached_property
    def _files(self) -> dict[str, str]:
        """SHA-256 of each file, by path."""
        return {str(file): _digest(file) for file in self._paths() if file.is_file()}

    def _paths(self) -> Iterator[Path]:
        folder, scenario = self.path.parent, self.scenario
        yield from data_files(scenario.data.path, folder)[1]
        yield from map(Path, plugin_paths(scenario, self.path))
        if data := scenario.federation.get("evaluation", {}).get("data"):
            yield located(data, folder)
        yield from (Path(self.options[k]) for k in ("faults", "profiles") if k in self.options)


def resolve(
    path: Path, changes: Mapping[str, Any], engine: str, options: Mapping[str, Any]
) -> Resolved:
    """Returns what a run is made of, checked as far as that goes without reading its data.

    Args:
        path: of the scenario.
        changes: to the scenario, by dotted key.
        engine: simulate or run.
        options: that are no changes of the scenario; JSON-ready.

    Raises:
        ConfigError: scenario, changes, model, baselines or options are wrong.
    """
    scenario = load_scenario(path, changes)
    package = _package(scenario, path)
    check_baselines(scenario.baselines, package.spec, path)
    if wanted := options.get("mode"):
        exact = [f"options.{key}" for key in ("faults", "profiles", "signed") if key in options]
        choose_mode(wanted, coordinator_config(scenario, path), 1, exact)
    return Resolved(path.resolve(), scenario, engine, options, package)


def _digest(path: Path) -> str:
    try:
        status = path.stat()
        return _digest_of(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _digest_of(path: Path, _size: int, _changed_ns: int) -> str:
    return file_sha256(path)


_PACKAGES: dict[tuple[str, Path], ModelPackage] = {}


def _package(scenario: Scenario, path: Path) -> ModelPackage:
    """Returns the scenario's model, which is loaded once for all cases of a grid."""
    key = (str(scenario.federation.get("model")), path.parent)
    if key not in _PACKAGES:
        _PACKAGES[key] = source_package(scenario, path)
    return _PACKAGES[key]
