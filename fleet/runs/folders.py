"""Folders that a run writes before it starts: one for each process, and one for each agent.

processes/coordinator/       coordinator.yaml, package/; later its state/ and log
processes/<agent>/           agent.yaml, data.npz; later its state/ and log
processes/host-<n>/<agent>/  the same, where one process hosts many agents; the log is the host's
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import yaml

from broker.link.settings import BrokerSettings
from coordinator.config import CoordinatorConfig
from edge_agent.data.config import DataConfig
from fedge.errors import ConfigError
from fedge.files import claimed, holder
from fedge.yaml_config import load_config, located
from fleet.participants import Participants
from fleet.report import REPORT_FILE
from fleet.runs.host import AGENT_FILE
from fleet.runs.resume import RUN_FILE
from fleet.scenario import coordinator_config, federation_section, fleet_changes, plugin_paths
from models.package.package import ModelPackage
from models.package.spec import TensorSpec

COORDINATOR = "coordinator"
COORDINATOR_FILE = "coordinator.yaml"
_DATA_FILE = "data.npz"
_MADE_HERE = ("processes", "model", REPORT_FILE, RUN_FILE)
#: A report's first key is the scenario's name; the first two of RUN_FILE are short.
_REPORT_HEAD = 64

# A thousand agents are a thousand files: libyaml's emitter, where there is one, writes them in a
# fifth of a second.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def clear(out: Path) -> None:
    """Makes the folder and removes only the files of an earlier run.

    Raises:
        ConfigError: see `make_out`.
    """
    make_out(out)
    for name in ("processes", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (REPORT_FILE, RUN_FILE):
        (out / name).unlink(missing_ok=True)


def make_out(out: Path) -> None:
    """Makes the folder, and refuses one in which foreign files would be replaced.

    Raises:
        ConfigError: the folder cannot be written, or it holds files with the names of a run's
            files that no run made.
    """
    make_folder(out)
    found = [name for name in _MADE_HERE if (out / name).exists()]
    if found and not _is_of_a_run(out):
        raise ConfigError(
            f"{out} holds {found[0]!r}, which no earlier run made and this run would replace: "
            "name another folder with --out, or move it away"
        )


@contextmanager
def used_alone(out: Path, role: str = "run") -> Iterator[None]:
    """Keeps the folder of a run for this process while it writes there.

    Args:
        out: the folder; made if missing.
        role: names the lock.

    Raises:
        ConfigError: another process uses it, or it cannot be written.
    """
    make_folder(out)
    if number := holder(out, role):
        raise ConfigError(
            f"{out} is in use by process {number}: wait for its end, or name another folder with "
            "--out"
        )
    with claimed(out, role):
        yield


def make_folder(out: Path) -> None:
    """Makes the folder if it is missing, and checks that files can be written in it.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error.strerror}; name another folder with --out"
        ) from error


def _is_of_a_run(out: Path) -> bool:
    """Returns whether an earlier run made the folder: it has a file of one that says so."""
    if (out / "processes" / COORDINATOR / COORDINATOR_FILE).is_file():
        return True
    marks = {REPORT_FILE: b'"scenario"', RUN_FILE: b'"configuration"'}
    return any(mark in _head(out / name) for name, mark in marks.items())


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_REPORT_HEAD)
    except OSError:
        return b""


def write_coordinator(
    folder: Path,
    participants: Participants,
    package: ModelPackage,
    path: Path,
    changes: Mapping[str, Any],
) -> CoordinatorConfig:
    """Writes the coordinator's folder; returns the configuration in its file.

    Args:
        folder: parent; the coordinator's folder is made below.
        participants: agents, rows and scenario.
        package: the model.
        path: of the scenario.
        changes: keys that the fleet sets.

    Raises:
        ConfigError: the scenario's `federation` section is wrong.
    """
    (folder / COORDINATOR).mkdir(parents=True, exist_ok=True)
    package.save(folder / COORDINATOR / "package")
    given = federation_section(participants.scenario)
    changes = {"model": "package"} | dict(changes)
    changes |= fleet_changes(participants.scenario, len(participants.asked))
    evaluation = dict(given.get("evaluation", {}))
    if "data" in evaluation:
        evaluation["data"] = str(located(evaluation["data"], path.parent).resolve())
        changes["evaluation"] = evaluation
    if plugins := plugin_paths(participants.scenario, path):
        changes["plugins"] = plugins
    config = coordinator_config(participants.scenario, path, **changes)
    _write_yaml(folder / COORDINATOR / COORDINATOR_FILE, given | changes)
    return config


def write_agent(
    folder: Path,
    name: str,
    participants: Participants,
    federation: str,
    broker: Mapping[str, Any],
    plugins: Sequence[str] = (),
) -> None:
    """Writes one agent's folder, with its data in it.

    Args:
        folder: of the agent; made here where it is missing.
        name: of the agent.
        participants: agents, rows and scenario.
        federation: name of the federation.
        broker: the `broker` section of the agent's file.
        plugins: absolute paths of the plug-ins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    participants.write(name, folder / _DATA_FILE)
    data, unseen = participants.scenario.data, name in participants.scenario.unseen
    agent: dict[str, Any] = {
        "federation": federation,
        "agent_id": name,
        "broker": dict(broker),
        "phases": list(participants.phases(name)),
        "statistics": msgspec.to_builtins(participants.statistics(name)),
        "data": {
            "path": _DATA_FILE,
            "inputs": {t.name: {"array": t.name} for t in participants.spec.inputs},
            **_targets(participants),
            "test_fraction": 1.0 if unseen else data.test_fraction,
            "split": data.split,
            "normalise": data.normalise,
            "nan": data.nan,
            "max_rows": data.max_rows,
        },
    }
    if data.group is not None:
        agent["data"]["group"] = "group"
    if plugins:
        agent["plugins"] = list(plugins)
    _write_yaml(folder / AGENT_FILE, agent)


def federation_of(folder: Path) -> str | None:
    """Returns the federation's name in the coordinator's file of an earlier run; None: no file."""
    path = folder / COORDINATOR / COORDINATOR_FILE
    return load_config(path, CoordinatorConfig).federation if path.is_file() else None


def _targets(participants: Participants) -> dict[str, Any]:
    """Returns the keys of an agent's `data` section for targets and row weights."""
    given = participants.scenario.data
    sources = {
        target.name: {"array": target.name} | _conversion(given, target)
        for target in participants.spec.targets
    }
    keys = sources if "target" in sources else {"targets": sources} if sources else {}
    return keys | ({"weight": {"array": "weight"}} if given.weight else {})


def _conversion(given: DataConfig, target: TensorSpec) -> dict[str, float]:
    source = given.target_sources.get(target.name)
    return {} if source is None else {"scale": source.scale, "offset": source.offset}


def broker_keys(settings: BrokerSettings) -> dict[str, Any]:
    """Returns the `broker` section of a configuration: host, port and keys not at default."""
    said: dict[str, Any] = msgspec.to_builtins(settings)
    usual: dict[str, Any] = msgspec.to_builtins(BrokerSettings())
    always = ("host", "port")  # the usual port depends on the other keys
    return {key: v for key, v in said.items() if key in always or v != usual[key]}


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.dump(value, Dumper=_Dumper, sort_keys=False))
