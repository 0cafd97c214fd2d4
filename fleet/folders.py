"""What a run writes before it starts: a folder for each process, and one for each agent.

processes/coordinator/       coordinator.yaml, package/; later its state/ and log
processes/<agent>/           agent.yaml, data.npz; later its state/ and log
processes/host-<n>/<agent>/  the same, where one process hosts many; the log is the host's
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import yaml

from broker.link.settings import BrokerSettings
from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError
from fedge.yaml_config import located
from fleet.host import AGENT_FILE
from fleet.participants import Cast
from fleet.report import REPORT_FILE
from fleet.scenario import coordinator_config, fleet_changes, plugin_paths
from models.package.package import ModelPackage

COORDINATOR = "coordinator"
COORDINATOR_FILE = "coordinator.yaml"
_DATA_FILE = "data.npz"
_MADE_HERE = ("processes", "model", REPORT_FILE)
#: A report's first key is the scenario's name.
_REPORT_HEAD = 64

# A thousand agents are a thousand files: libyaml's emitter, where there is one, writes them in a
# fifth of a second.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def clear(out: Path) -> None:
    """Make the folder, and remove an earlier run's files, and nothing else.

    Raises:
        ConfigError: see `make_out`.
    """
    make_out(out)
    for name in ("processes", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / REPORT_FILE).unlink(missing_ok=True)


def make_out(out: Path) -> None:
    """Makes the folder, and refuses one in which something of somebody else's would be replaced.

    Raises:
        ConfigError: nothing can be written there, or it holds what is called like a run's files,
            and no run made it.
    """
    make_folder(out)
    found = [name for name in _MADE_HERE if (out / name).exists()]
    if found and not _is_of_a_run(out):
        raise ConfigError(
            f"{out} holds {found[0]!r}, which is of no earlier run and would be replaced: "
            "name another folder with --out, or move it away"
        )


def make_folder(out: Path) -> None:
    """Makes the folder, if it is not there, and looks whether files can be made in it.

    Raises:
        ConfigError: it cannot be made, or written.
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
    """Whether a run's marks are there: its coordinator's file, or a report of ours."""
    if (out / "processes" / COORDINATOR / COORDINATOR_FILE).is_file():
        return True
    try:
        with (out / REPORT_FILE).open("rb") as file:
            return b'"scenario"' in file.read(_REPORT_HEAD)
    except OSError:
        return False


def write_coordinator(
    folder: Path,
    cast: Cast,
    package: ModelPackage,
    path: Path,
    changes: Mapping[str, Any],
    rounds: int | None,
) -> CoordinatorConfig:
    """The coordinator's folder; returns what is in its file.

    Args:
        folder: made here.
        cast: whose scenario it is.
        package: the model.
        path: of the scenario.
        changes: keys that the fleet sets.
        rounds: so many instead of the scenario's.

    Raises:
        ConfigError: what the scenario says of the federation is wrong.
    """
    (folder / COORDINATOR).mkdir(parents=True)
    package.save(folder / COORDINATOR / "package")
    given = cast.scenario.federation
    changes = {"model": "package"} | dict(changes)
    changes |= fleet_changes(cast.scenario, len(cast.asked), rounds)
    evaluation = dict(given.get("evaluation", {}))
    if "data" in evaluation:
        evaluation["data"] = str(located(evaluation["data"], path.parent).resolve())
        changes["evaluation"] = evaluation
    if plugins := plugin_paths(cast.scenario, path):
        changes["plugins"] = plugins
    config = coordinator_config(cast.scenario, path, **changes)
    _write_yaml(folder / COORDINATOR / COORDINATOR_FILE, given | changes)
    return config


def write_agent(
    folder: Path,
    name: str,
    cast: Cast,
    federation: str,
    broker: Mapping[str, Any],
    plugins: Sequence[str] = (),
) -> None:
    """Writes one agent's folder, with its data in it.

    Args:
        folder: made here.
        name: of the agent.
        cast: whose scenario it is.
        federation: its name.
        broker: keys of the agent's file.
        plugins: absolute paths.
    """
    folder.mkdir(parents=True)
    cast.write(name, folder / _DATA_FILE)
    data, unseen = cast.scenario.data, name in cast.scenario.unseen
    agent: dict[str, Any] = {
        "federation": federation,
        "agent_id": name,
        "broker": dict(broker),
        "phases": list(cast.phases(name)),
        "statistics": msgspec.to_builtins(cast.statistics(name)),
        "data": {
            "path": _DATA_FILE,
            "inputs": {t.name: {"array": t.name} for t in cast.spec.inputs},
            **_targets(cast),
            "test_fraction": 1.0 if unseen else data.test_fraction,
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


def _targets(cast: Cast) -> dict[str, Any]:
    """Where an agent's data file holds what is learned, and the weight of its rows."""
    given = cast.scenario.data
    sources = {
        target.name: {"array": target.name}
        | ({"scale": source.scale} if (source := given.target_sources.get(target.name)) else {})
        for target in cast.spec.targets
    }
    keys = sources if "target" in sources else {"targets": sources} if sources else {}
    return keys | ({"weight": {"array": "weight"}} if given.weight else {})


def broker_keys(settings: BrokerSettings) -> dict[str, Any]:
    """What the configurations say of the broker: all that is not the default."""
    said: dict[str, Any] = msgspec.to_builtins(settings)
    usual: dict[str, Any] = msgspec.to_builtins(BrokerSettings())
    always = ("host", "port")  # the usual port depends on the other keys
    return {key: v for key, v in said.items() if key in always or v != usual[key]}


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.dump(value, Dumper=_Dumper, sort_keys=False))
