"""Record of a run in its report: the configuration with every default, and where it was run."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

import fedge
from coordinator.config import CoordinatorConfig
from edge_agent.data.files import data_files
from fedge.system import memory_bytes, read_text
from fedge.yaml_config import located
from fleet.participants import Participants
from fleet.partition import unused
from fleet.scenario import Scenario, coordinator_config, fleet_changes, source_package
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.registry import ALGORITHMS
from learning.codecs.registry import CODECS
from learning.phases.registry import PHASES
from learning.registry import Registry
from models.package.initial_weights import draw_weights
from models.package.package import ModelPackage

Kind = Literal["processes", "event_exact", "batched"]

#: Keys of a coordinator that the fleet sets, of which nothing depends, and which may hold a login.
_NOT_OF_THE_SCENARIO = ("federation", "broker", "state_dir", "signing_key", "seed")
_CHOICES: Mapping[str, Registry[Any]] = {
    "algorithm": ALGORITHMS,
    "aggregator": AGGREGATORS,
    "codec": CODECS,
    "task": PHASES,
}
#: Tensors that a note names.
_LISTED = 5
_GIT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 1 << 20


def run_record(
    participants: Participants,
    path: Path,
    package: ModelPackage,
    *,
    kind: Kind,
    options: Mapping[str, Any],
    started: datetime,
) -> dict[str, Any]:
    """Returns the keys `seed`, `configuration` and `run` of a report (docs/report.md).

    Args:
        participants: agents, rows and scenario, with its changes.
        path: of the scenario.
        package: the model, as it is run.
        kind: how the agents are run.
        options: of the command, by name; JSON-ready values and paths.
        started: when, with a time zone.
    """
    scenario = participants.scenario
    changes = fleet_changes(scenario, len(participants.asked))
    config = coordinator_config(scenario, path, **changes)
    seed = scenario.resolved_seeds.weights
    source = source_package(scenario, path)
    kept = {} if seed is None else draw_weights(source, seed).kept
    return {
        "seed": scenario.seed,
        "configuration": resolved_configuration(scenario, config),
        "run": run_facts(kind, options, started)
        | {
            "package": package.digest,
            "initial_weights": {
                "seed": seed,
                "package": source.digest,
                "kept": dict(kept),
            },
            "files": dict(_files(scenario, path, config, options)),
        },
    }


def run_facts(kind: Kind, options: Mapping[str, Any], started: datetime) -> dict[str, Any]:
    """Returns the keys of `run` that do not depend on the scenario; arguments as `run_record`."""
    return {
        "kind": kind,
        "options": plain(options),
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "resumed": [],
        "versions": _versions(),
        "commit": checkout_commit(),
        "machine": _machine(),
    }


def record_notes(record: Mapping[str, Any]) -> list[str]:
    """Returns what a person should know of a record when the run begins, a line for each thing."""
    weights = record["run"]["initial_weights"]
    kept = weights["kept"]
    if not kept:
        return []
    reasons = "; ".join(dict.fromkeys(kept.values()))
    return [
        f"initial weights: {len(kept)} tensors keep the values of the model's package, whatever "
        f"the seed ({', '.join(list(kept)[:_LISTED])}): {reasons}"
    ]


def resolved_configuration(scenario: Scenario, config: CoordinatorConfig) -> dict[str, Any]:
    """Returns a scenario with every default filled in, as it could stand in a file."""
    resolved: dict[str, Any] = plain(scenario)
    federation = plain(config)
    for key in _NOT_OF_THE_SCENARIO:
        federation.pop(key)
    federation["cohort"].pop("seed")
    for key, registry in _CHOICES.items():
        federation[key] = plain(registry.settings(getattr(config, key)))
    foreign = unused(scenario.partition.kind, resolved["partition"])
    resolved["partition"] = {k: v for k, v in resolved["partition"].items() if k not in foreign}
    seeds = scenario.resolved_seeds._asdict()
    seeds["weights"] = "package" if seeds["weights"] is None else seeds["weights"]
    return resolved | {"federation": federation, "seeds": seeds}


def plain(value: Any) -> Any:
    """Returns a value of JSON's types, with the fields of structs that are at their defaults."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        fields = {f.encode_name: getattr(value, f.name) for f in msgspec.structs.fields(value)}
        return tag | {key: plain(each) for key, each in fields.items()}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def checkout_commit(package: Path | None = None) -> str | None:
    """Returns the commit that fedge runs from, with `-dirty` after changes; None: no checkout.

    Args:
        package: folder of the package `fedge`; None: that of this process.
    """
    folder = (package or Path(fedge.__file__).parent).parent
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # git is missing, slow, or refuses somebody else's folder
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    return {
        "fedge": fedge.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _machine() -> dict[str, Any]:
    """Returns what figures of time depend on; nothing that names the machine."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_bytes": memory_bytes(),
    }


def _cpu() -> str:
    lines = read_text(Path("/proc/cpuinfo")).splitlines()
    fields = [line.partition(":") for line in lines]
    named = {key.strip().lower(): value.strip() for key, _, value in fields}
    return named.get("model name") or named.get("model") or platform.processor()


def _files(
    scenario: Scenario, path: Path, config: CoordinatorConfig, options: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the files that the results depend on, by what they are for: path, bytes, SHA-256."""
    named: list[tuple[str, Path]] = [("scenario", path)]
    named += [("data", each) for each in data_files(scenario.data.path, path.parent)[1]]
    if config.evaluation.data is not None:
        named.append(("evaluation", located(config.evaluation.data, path.parent)))
    named += [("plugin", located(each, path.parent)) for each in config.plugins]
    named += [(name, each) for name, each in options.items() if isinstance(each, Path)]
    count: dict[str, int] = {}
    for what, file in named:
        if not file.is_file():
            continue
        number = count[what] = count.get(what, -1) + 1
        key = f"{what}_{number}" if number else what
        yield key, {"path": str(file), "bytes": file.stat().st_size, "sha256": file_sha256(file)}


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, hex; memory: 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
