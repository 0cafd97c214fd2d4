"""Scenario: one YAML file with the data, the model, the federation and the baselines of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from broker.protocol.messages import Id, name_of
from coordinator.config import CoordinatorConfig, Seed, check_choices
from coordinator.machine.roster import MAX_AGENTS
from edge_agent.data.dataset import DataConfig
from edge_agent.machine.status import DEFAULT_PHASES
from fedge.errors import ConfigError, ModelError, did_you_mean
from fedge.plugins import load_plugins
from fedge.yaml_config import load_yaml, located, parse_config
from fleet.partition import PartitionConfig, unused
from fleet.seeds import Seeds, SeedsConfig, resolve_seeds
from fleet.settings import apply_changes, blame, full_keys, options
from models.package.initial_weights import draw_weights
from models.package.package import ModelPackage, load_package
from models.zoo import load_zoo, zoo_names


class BaselineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Baselines for the federated model, measured in the same run and on the same rows.

    Attributes:
        metric: compared metric: one of the model's, or "loss".
        own: train one model for each agent on its rows alone.
        pooled: train one model on the rows of all agents together, as if data could travel.
        epochs: of both; as many as an agent sees in all rounds when not given.
        least_squares: solve the linear problem exactly and report the distance to it.
        within: largest gap to pooled; with a larger one the run fails.
        above_own: smallest gain over own; with a smaller one the run fails.
    """

    metric: str = "loss"
    own: bool = False
    pooled: bool = False
    epochs: Annotated[int, Meta(ge=1)] | None = None
    least_squares: bool = False
    within: Annotated[float, Meta(ge=0)] | None = None
    above_own: Annotated[float, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if self.within is not None and not self.pooled:
            raise ValueError("within compares with pooled training: set pooled: true")
        if self.above_own is not None and not self.own:
            raise ValueError("above_own compares with training alone: set own: true")


class DetectionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Anomaly detection by a row's loss, measured after the last round.

    Attributes:
        label: array or column that is 1 for rows that should be found, 0 for others; never sent
            to an agent.
        quantile: of the losses of the training rows; a larger loss raises the alarm.
    """

    label: str
    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.99


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A federation with its data, agents and baselines, as `fedge fleet run` runs it.

    Attributes:
        name: of the scenario, its federation and its folder below `runs/`.
        description: one line for people.
        licence: of the data, with its source.
        data: location and format of the rows; as in an agent's configuration.
        partition: assignment of rows to agents.
        unseen: agents that only measure: the model is never trained on their rows.
        refuse: agents whose owners do not allow statistics.
        federation: the coordinator's configuration, without name, broker, state_dir and seeds.
        baselines: for the federated model.
        detection: of rows that a model should find unusual; None measures none.
        agents: number of agents that take part, unseen ones included; None: all that the partition
            makes. Of a partition by client the first ones; others make so many.
        seed: of everything random that has none of its own; None: 0, with the initial weights of
            the model's package.
        seeds: of one thing each.
        show: "agents" prints every agent's loss and metrics after every round.
    """

    name: Id
    description: str
    licence: str
    data: DataConfig
    partition: PartitionConfig
    unseen: tuple[Id, ...] = ()
    refuse: tuple[Id, ...] = ()
    federation: dict[str, Any]
    baselines: BaselineConfig = BaselineConfig()
    detection: DetectionConfig | None = None
    agents: Annotated[int, Meta(ge=1, le=MAX_AGENTS)] | None = None
    seed: Seed | None = None
    seeds: SeedsConfig = SeedsConfig()
    show: Literal["rounds", "agents"] = "rounds"

    def __post_init__(self) -> None:
        if self.data.test_fraction == 1:
            raise ValueError(
                "data.test_fraction 1 leaves no agent rows to train on; use a smaller fraction, "
                "and name agents that only measure in `unseen`"
            )
        client = self.partition.client
        if self.data.window and self.partition.kind == "client" and self.data.groups != (client,):
            raise ValueError(
                f"data.window: a window must not cross two clients: set data.group: {client}"
            )
        if self.is_statistics and (self.detection or self.baselines != BaselineConfig()):
            raise ValueError("task statistics trains nothing: leave out baselines and detection")
        if self.refuse and not self.is_statistics:
            raise ValueError("refuse applies to the task statistics only; leave it out")

    @property
    def resolved_seeds(self) -> Seeds:
        """Every seed of a run."""
        return resolve_seeds(self.seed, self.seeds)

    @property
    def is_statistics(self) -> bool:
        """Whether the federation asks for statistics instead of training."""
        task = self.federation.get("task", "")
        return isinstance(task, str | dict) and name_of(task) == "statistics"


#: Key whose change makes the file's settings of another kind mean nothing.
PARTITION_KIND = "partition.kind"
#: Keys of a coordinator that a scenario's `federation` section does not take, with what to do.
_LEAVE_OUT = {
    "federation": "set by the fleet; leave it out",
    "broker": "set by the fleet; leave it out",
    "state_dir": "set by the fleet; leave it out",
    "seed": "leave it out; a scenario has `seed` and `seeds` at its top",
}


def load_scenario(path: Path, changes: Mapping[str, Any] | None = None) -> Scenario:
    """Returns the scenario in a file, with changes made, and loads its plug-ins.

    Args:
        path: of the file.
        changes: values by dotted key, which replace the file's (see `fleet.settings`).

    Raises:
        ConfigError: begins with file and key, or with the change that is wrong.
    """
    check_there(path)
    document = load_yaml(path)
    if not changes or not isinstance(document, dict):
        return _decoded(document, path, str(path))
    made = scenario_changes(changes)
    changed = apply_changes(document, made)
    if PARTITION_KIND in made:
        changed = _without_old_kind(changed, document, made)
    try:
        return _decoded(changed, path, "")
    except ConfigError as error:
        if wrong := blame(str(error), made):
            raise ConfigError(wrong) from error
        _decoded(document, path, str(path))  # raises where the file itself is wrong
        raise ConfigError(f"{options(made)}: {error}") from error


def _without_old_kind(
    changed: dict[str, Any], document: Mapping[str, Any], made: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a scenario of another kind of partition without the file's settings of its own."""
    own, partition = document.get("partition"), changed["partition"]
    if not isinstance(own, dict) or not isinstance(partition, dict):
        return changed
    kept = {key.partition(".")[2] for key in made if key.startswith("partition.")}
    old = unused(str(partition["kind"]), own.keys() - kept)
    return changed | {"partition": {k: v for k, v in partition.items() if k not in old}}


def scenario_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns changes with keys from the top of a scenario, see `fleet.settings.full_keys`."""
    return full_keys(changes, Scenario)


def _decoded(document: Any, path: Path, origin: str) -> Scenario:
    """Returns a scenario whose messages begin with `origin`, if it is not empty, and a key."""
    scenario = parse_config(document, Scenario, origin)
    start = f"{origin}: " if origin else ""
    kind = scenario.partition.kind
    for name, kinds in unused(kind, document["partition"]).items():
        needed = " or ".join(f"{PARTITION_KIND}={other}" for other in kinds)
        raise ConfigError(
            f"{start}partition.{name}: kind {kind} has no use for {name}: leave it out, or set "
            f"{needed}"
        )
    for key, advice in _LEAVE_OUT.items():
        if key in scenario.federation:
            raise ConfigError(f"{start}federation.{key}: {advice}")
    given = {"federation": scenario.name} | scenario.federation
    config = parse_config(given, CoordinatorConfig, origin, key="federation")
    if config.cohort.seed is not None:
        raise ConfigError(f"{start}federation.cohort.seed: {_LEAVE_OUT['seed']}")
    load_plugins(config.plugins, path.parent, origin, key="federation.plugins")
    try:
        check_choices(config)
    except ConfigError as error:
        raise ConfigError(f"{start}federation: {error}") from error
    return scenario


def check_there(path: Path) -> None:
    """Checks that the name of an example does not stand for a file.

    Raises:
        ConfigError: it does; says how to write the file.
    """
    if path.exists():
        return
    from fedge.handbook.example import examples  # only to explain

    if example := examples().get(path.stem):
        raise ConfigError(
            f"{path}: no such file; `fedge example {path.stem}` writes this example to "
            f"examples/{example.name}"
        )


def plugin_paths(scenario: Scenario, path: Path) -> list[str]:
    """Returns the absolute paths of a scenario's plug-ins, for the files of its processes."""
    given = coordinator_config(scenario, path).plugins
    return [str(located(plugin, path.parent).resolve()) for plugin in given]


def agent_phases(scenario: Scenario, *, unseen: bool) -> tuple[str, ...]:
    """Returns the phases that an agent of a scenario takes part in; its task is one of them."""
    task = name_of(scenario.federation.get("task", "train"))
    left_out = ("train",) if unseen else ()
    phases = tuple(phase for phase in DEFAULT_PHASES if phase not in left_out)
    return phases if task in DEFAULT_PHASES else (*phases, task)


def coordinator_config(scenario: Scenario, path: Path, **changes: Any) -> CoordinatorConfig:
    """Returns the coordinator's configuration from the `federation` section of a scenario.

    Args:
        scenario: to read.
        path: of the scenario, for messages.
        changes: replace or add keys.
    """
    section = federation_section(scenario) | changes
    return parse_config(section, CoordinatorConfig, str(path), key="federation")


def federation_section(scenario: Scenario) -> dict[str, Any]:
    """Returns the `federation` section of a scenario with the federation's name and seeds."""
    given, seeds = scenario.federation, scenario.resolved_seeds
    section = {"federation": scenario.name} | given | {"seed": seeds.training}
    if seeds.cohort != seeds.training:
        section["cohort"] = dict(given.get("cohort", {})) | {"seed": seeds.cohort}
    return section


def fleet_changes(scenario: Scenario, asked: int) -> dict[str, Any]:
    """Returns the changes that a fleet makes to the scenario's `federation` section.

    Args:
        scenario: to run.
        asked: number of agents that a round can ask. The first round waits for all of them; no
            minimum of the scenario stays above it.
    """
    given = federation_section(scenario)
    start = {"agents": asked, "timeout_s": 60.0} | given.get("start", {})
    changes: dict[str, Any] = {"start": start}
    for section, key in (("round", "minimum"), ("cohort", "at_least")):
        values = dict(given.get(section, {}))
        if values.get(key, 0) > asked:
            changes[section] = values | {key: asked}
    return changes


def scenario_package(scenario: Scenario, path: Path) -> ModelPackage:
    """Returns the scenario's model with the initial weights of its seed, see `source_package`."""
    package, seed = source_package(scenario, path), scenario.resolved_seeds.weights
    return package if seed is None else draw_weights(package, seed).package


def source_package(scenario: Scenario, path: Path) -> ModelPackage:
    """Returns the scenario's model: from the zoo, or from a folder relative to the scenario.

    Raises:
        ModelError: there is no such model.
    """
    reference = str(scenario.federation["model"])
    if reference in zoo_names():
        return load_zoo(reference)
    folder = located(reference, path.parent)
    if not folder.is_dir():
        raise ModelError(f"{path}: federation.model: {no_model(reference)}")
    return load_package(folder)


def no_model(reference: str) -> str:
    """Returns, in words, that a name is of no model, and what the zoo has."""
    hint = did_you_mean(reference, zoo_names())
    return (
        f"{reference!r} is no folder of a package and not in the zoo: {hint}the zoo has "
        f"{', '.join(zoo_names())}"
    )
