"""Federation of a model and of arrays in memory, prepared as one of a scenario's file is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.config import CoordinatorConfig, check_choices
from edge_agent.data.table import Array
from fedge.errors import ConfigError, DataError, did_you_mean
from fedge.plugins import load_plugins
from fedge.yaml_config import parse_config
from fleet.in_memory.clients import Gathered, gather
from fleet.in_memory.columns import WEIGHT, is_mapping, read_columns
from fleet.in_memory.values import plain
from fleet.participants import Participants
from fleet.runs.prepared import Prepared
from fleet.runs.record import resolved_configuration, run_facts
from fleet.scenario import Scenario, federation_section, fleet_changes
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.central_rows import read_rows

#: File of the coordinator's own rows, in the folder of a run.
CENTRAL_FILE = "central.npz"
#: Keys of a scenario's `data` section that are not about files.
_DATA_KEYS = ("nan", "normalise", "split", "test_fraction")
#: Keys of its `federation` section that are arguments, or that nothing here depends on.
_NOT_OF_FEDERATION = ("broker", "federation", "model", "seed", "signing_key", "state_dir")
#: No agent has the name of the other process.
_RESERVED = "coordinator"
#: Clients that a message lists.
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a person wants of a federation; see `fleet.api.simulate`.

    Attributes:
        name: of the run.
        data: keys of a scenario's `data` section.
        federation: keys of its `federation` section.
        seed: of everything random but the model's initial weights.
        unseen: names of clients that only measure, or more clients, which do.
        test: rows that the coordinator measures on; None: none.
        options: of the simulation, for the report.
    """

    name: str
    data: Mapping[str, Any]
    federation: Mapping[str, Any]
    seed: int
    unseen: Any = ()
    test: Any = None
    options: Mapping[str, Any] | None = None


def prepare_arrays(
    package: ModelPackage, clients: Any, wanted: Wanted, folder: Path
) -> tuple[Prepared, dict[str, Any]]:
    """Returns a federation ready to be simulated, and the keys of its report that say what it is.

    Args:
        package: the model.
        clients: see `fleet.api.simulate`.
        wanted: of the federation.
        folder: of the run; central rows are written there.

    Raises:
        ConfigError: a setting is wrong; begins with its key.
        DataError: arrays do not fit the model.
    """
    started, spec = datetime.now(UTC), package.spec
    _check_keys(wanted)
    gathered, unseen = _with_unseen(spec, clients, wanted.unseen)
    _check_unseen(gathered, unseen)
    if _RESERVED in gathered.rows:
        raise ConfigError(f"a client is named {_RESERVED!r}: choose another name")
    scenario = _scenario(spec, wanted, unseen, is_weighted=WEIGHT in gathered.columns)
    table = gathered.table(spec)
    participants = Participants(scenario, spec, table, gathered.rows, clients=gathered.renamed)
    path = Path.cwd() / wanted.name
    config = _config(scenario, path, participants, _central(spec, wanted.test, folder))
    package_facts = {
        "package": package.digest,
        "initial_weights": {"seed": None, "package": package.digest, "kept": {}},
        "files": {},
    }
    record = {
        "seed": scenario.seed,
        "configuration": resolved_configuration(scenario, config),
        "run": run_facts("batched", wanted.options or {}, started) | package_facts,
    }
    return Prepared(path, scenario, participants, config, package), record


def _check_keys(wanted: Wanted) -> None:
    for key in wanted.data:
        if key not in _DATA_KEYS:
            raise ConfigError(
                f"data.{key}: rows are in memory; {did_you_mean(key, _DATA_KEYS)}keys: "
                f"{', '.join(_DATA_KEYS)}"
            )
    for key in _NOT_OF_FEDERATION:
        if key in wanted.federation:
            raise ConfigError(f"federation.{key}: has no place in a simulation; leave it out")


def _with_unseen(spec: ModelSpec, clients: Any, unseen: Any) -> tuple[Gathered, tuple[str, ...]]:
    """Returns all clients, and the names of those that only measure."""
    if not is_mapping(unseen):
        is_one = isinstance(unseen, str) or not isinstance(unseen, Iterable)
        gathered = gather(spec, clients)
        return gathered, tuple(gathered.names_of((unseen,) if is_one else tuple(unseen)))
    if not is_mapping(clients):
        raise ConfigError(
            "unseen is a mapping of clients, so clients must be one as well, from names to (x, y); "
            "or name those of clients that only measure, unseen=[...]"
        )
    if both := sorted(set(map(str, clients)) & set(map(str, unseen))):
        raise ConfigError(f"unseen: {both[0]!r} is in clients too: a client trains or it does not")
    gathered = gather(spec, {**clients, **unseen})
    return gathered, tuple(gathered.rows.names[len(clients) :])


def _check_unseen(gathered: Gathered, unseen: Sequence[str]) -> None:
    rows = gathered.rows
    for name in unseen:
        if name not in rows:
            names = [gathered.renamed.get(known, known) for known in rows.names]
            listed = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
            raise ConfigError(
                f"unseen: no client {name!r}; {did_you_mean(name, names)}clients: {listed}"
            )
    if len(unseen) == len(rows):
        raise ConfigError(f"unseen names all {len(rows)} clients: leave at least one to train")


def _scenario(
    spec: ModelSpec, wanted: Wanted, unseen: Sequence[str], *, is_weighted: bool
) -> Scenario:
    weight = {WEIGHT: {"array": WEIGHT}} if is_weighted else {}
    document = {
        "name": wanted.name,
        "description": "simulated from Python, on arrays in memory",
        "licence": "",
        "data": {"path": "clients.npz", **weight, **wanted.data},
        "partition": {"kind": "client"},
        "unseen": list(unseen),
        "federation": {**wanted.federation, "model": spec.name},
        "seed": wanted.seed,
        # The model's own: whoever brings a model brings its weights.
        "seeds": {"weights": "package"},
    }
    return parse_config(plain(document), Scenario, "")


def _config(
    scenario: Scenario, path: Path, participants: Participants, central: Path | None
) -> CoordinatorConfig:
    """Returns the coordinator's configuration; a message begins with the key that is wrong."""
    section = federation_section(scenario) | fleet_changes(scenario, len(participants.asked))
    if central is not None:
        section["evaluation"] = dict(section.get("evaluation", {})) | {"data": str(central)}
    config = parse_config(section, CoordinatorConfig, "")
    load_plugins(config.plugins, path.parent, "", key="plugins")
    check_choices(config)
    return config


def _central(spec: ModelSpec, test: Any, folder: Path) -> Path | None:
    """Writes the coordinator's own rows; returns where."""
    if test is None:
        return None
    columns = read_columns(spec, test, "test")
    if not len(next(iter(columns.values()))):
        raise DataError("test: no rows; leave it out")
    if WEIGHT in columns:
        raise DataError(
            "test: the coordinator measures all rows alike, without weight: give (x, y) alone, or "
            "weighted rows as a client that only measures, unseen={…}"
        )
    arrays: dict[str, Array] = {
        # Files of rows hold numbers.
        name: array.astype(np.uint8) if array.dtype.kind == "b" else array
        for name, array in columns.items()
    }
    path = folder.resolve() / CENTRAL_FILE
    np.savez(path, **arrays)
    try:
        read_rows(path, spec)
    except DataError as error:  # nobody knows the file, which is gone afterwards
        path.unlink()
        raise DataError(str(error).replace(f"{path}: ", "test: ")) from error
    return path
