"""Resolved configuration of a run: every key with its value, and digests of the files it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from fedge.errors import ConfigError
from fedge.yaml_config import located
from fleet.baselines import check_baselines
from fleet.scenario import (
    Scenario,
    coordinator_config,
    load_scenario,
    plugin_paths,
    source_package,
)
from models.package.package import ModelPackage

#: Keys of the coordinator's configuration that say where it runs, not what.
_PLACES = ("broker", "federation", "state_dir")


@dataclass(frozen=True)
class Resolved:
    """What a run is made of, but for its seed.

    Attributes:
        scenario: name of the scenario.
        metrics: names that its learning curves can have, the loss among them.
        rounds: number of rounds at most.
        document: every key with its value, and the files' SHA-256; JSON-ready.
    """

    scenario: str
    metrics: tuple[str, ...]
    rounds: int
    document: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """Returns the value of a dotted key, `federation.` left out or not; None: it has none."""
        for top in (self.document["configuration"], self.document["configuration"]["federation"]):
            found: Any = top
            for part in key.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return None


def resolve(
    path: Path, changes: Mapping[str, Any], engine: str, options: Mapping[str, Any]
) -> Resolved:
    """Returns the resolved configuration of a run.

    Args:
        path: of the scenario.
        changes: to the scenario, by dotted key.
        engine: simulate or run.
        options: that are no changes of the scenario; JSON-ready.

    Raises:
        ConfigError: scenario, changes, model or baselines are wrong, or a file cannot be read.
    """
    scenario = load_scenario(path, changes)
    config = coordinator_config(scenario, path)
    package = _package(scenario, path)
    check_baselines(scenario.baselines, package.spec, path)
    federation = complete(config)
    configuration = complete(scenario) | {
        "federation": {key: v for key, v in federation.items() if key not in _PLACES}
    }
    files = _files(scenario, path, options)
    document = {
        "engine": engine,
        "options": dict(options),
        "configuration": configuration,
        "model_sha256": _digest_of(package),
        "files_sha256": {str(file): file_digest(file) for file in files},
    }
    metrics = ["loss", *(metric.name for metric in package.spec.metrics)]
    return Resolved(scenario.name, tuple(metrics), config.rounds, document)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, which is read once as long as it does not change.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _digest(path: Path, _size: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_PACKAGES: dict[tuple[str, Path], ModelPackage] = {}


def _package(scenario: Scenario, path: Path) -> ModelPackage:
    """Returns the scenario's model, which is loaded once for all cases of a grid."""
    key = (str(scenario.federation.get("model")), path.parent)
    if key not in _PACKAGES:
        _PACKAGES[key] = source_package(scenario, path)
    return _PACKAGES[key]


def _digest_of(package: ModelPackage) -> str:
    digest = hashlib.sha256(package.program)
    digest.update(package.initial.tobytes())
    return digest.hexdigest()


def _files(scenario: Scenario, path: Path, options: Mapping[str, Any]) -> list[Path]:
    """Returns the files that a run reads beside its model."""
    named = [located(scenario.data.path, path.parent)]
    named += [Path(file) for file in plugin_paths(scenario, path)]
    if data := scenario.federation.get("evaluation", {}).get("data"):
        named.append(located(data, path.parent))
    named += [Path(options[key]) for key in ("faults", "profiles") if key in options]
    return [file.resolve() for file in named if not file.is_dir()]


def complete(value: Any) -> Any:
    """Returns settings as JSON-ready values, keys at their defaults included."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        tag = value.__struct_config__.tag_field
        named = {} if tag is None else {tag: value.__struct_config__.tag}
        return named | {f.encode_name: complete(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {str(key): complete(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [complete(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
