"""Participants of a scenario: agents, their rows, and the agents that only measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import msgspec
import numpy as np

from edge_agent.data.columns import StatisticsConfig
from edge_agent.data.dataset import LocalDataset, WeightSource, build_dataset, read_table
from edge_agent.data.table import Array, Table
from edge_agent.data.targets import row_classes
from fedge.errors import ConfigError, did_you_mean
from fleet.agent_rows import RowsByAgent
from fleet.partition import BY_LABEL, Kind, PartitionConfig, client_ids, client_values, partition
from fleet.scenario import Scenario, agent_phases
from models.package.spec import ModelSpec

#: Agents that a message lists.
_LISTED = 40


@dataclass(frozen=True, eq=False)
class Participants:
    """The agents of a scenario, each with its rows.

    Attributes:
        scenario: that the agents run.
        spec: of the model.
        table: all rows.
        rows: indexes of each agent's rows, in the order of time; two arrays for all agents.
        anomalies: `detection.label` of each row of the table; None without detection.
        clients: with clients whose values make no ids, the value of each agent's client.
    """

    scenario: Scenario
    spec: ModelSpec
    table: Table
    rows: RowsByAgent
    anomalies: Array | None = None
    clients: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _only_measure(self) -> frozenset[str]:
        return frozenset(self.scenario.unseen)

    @cached_property
    def _refuse(self) -> frozenset[str]:
        return frozenset(self.scenario.refuse)

    @cached_property
    def learners(self) -> Sequence[str]:
        """Agents that train."""
        if not self._only_measure:
            return self.rows.names
        return [name for name in self.rows.names if name not in self._only_measure]

    @cached_property
    def unseen(self) -> list[str]:
        """Agents that only measure."""
        if not self._only_measure:
            return []
        return [name for name in self.rows.names if name in self._only_measure]

    @property
    def asked(self) -> Sequence[str]:
        """Agents that a round can ask: all for statistics, else those that train."""
        return self.rows.names if self.scenario.is_statistics else self.learners

    def phases(self, name: str) -> tuple[str, ...]:
        """Returns the phases that an agent takes part in."""
        return self._measurers_phases if name in self._only_measure else self._learners_phases

    @cached_property
    def _learners_phases(self) -> tuple[str, ...]:
        return agent_phases(self.scenario, unseen=False)

    @cached_property
    def _measurers_phases(self) -> tuple[str, ...]:
        return agent_phases(self.scenario, unseen=True)

    def statistics(self, name: str) -> StatisticsConfig:
        """Returns the statistics that an agent's owner allows."""
        allow = self.scenario.is_statistics and name not in self._refuse
        return StatisticsConfig(allow=allow)

    def dataset(self, name: str) -> LocalDataset:
        """Returns the rows of one agent, prepared as the agent itself prepares them."""
        config = self.scenario.data
        if name in self._only_measure:
            config = msgspec.structs.replace(config, test_fraction=1.0)
        return build_dataset(self.table, config, self.spec, None, self.rows[name])

    def write(self, name: str, path: Path) -> None:
        """Writes an agent's data file (.npz): raw rows, as a device would record them."""
        rows = self.rows[name]
        arrays = {key: array[rows] for key, array in self.table.arrays.items()}
        if self.table.group is not None:
            arrays["group"] = self.table.group[rows]
        np.savez(path, **arrays)


def make_participants(
    scenario: Scenario, path: Path, spec: ModelSpec, agents: int | None
) -> Participants:
    """Reads the scenario's data and partitions it among the agents.

    Args:
        scenario: to run.
        path: of the scenario; the data's path is relative to it.
        spec: of the model.
        agents: number of agents, unseen ones included; None: the scenario's.

    Raises:
        DataError: the data file is unusable.
        ConfigError: more agents than the data has, or `unseen` or `refuse` names an agent that
            does not exist.
    """
    table = read_table(scenario.data, spec, path.parent)
    rng = np.random.default_rng(scenario.resolved_seeds.partition)
    config = scenario.partition
    if config.kind == "client":
        client = _clients(scenario, path, spec)
    else:
        client = None
        if agents is not None:
            config = msgspec.structs.replace(config, clients=agents)
    # As agents' own files have them, which hold no times any more.
    labels = _labels(table, spec, config.kind, path)
    try:
        rows = partition(config, labels, client, rng).in_time(table.epoch)
    except ConfigError as error:
        raise ConfigError(f"{path}: partition: {error}") from error
    # A run with fewer agents than the scenario has may leave out those that refuse.
    refuse = scenario.refuse if agents is None else ()
    for key, names in (("unseen", scenario.unseen), ("refuse", refuse)):
        if missing := sorted(name for name in names if name not in rows):
            raise ConfigError(f"{path}: {key}: {_no_agent(missing[0], rows.names)}")
    if len(rows) == len(set(scenario.unseen)):
        raise ConfigError(
            f"{path}: unseen: names all {len(rows)} agents; leave at least one to train"
        )
    chosen = _choose(rows, scenario, agents, path)
    anomalies = _anomalies(scenario, path, spec)
    clients = {} if client is None else _renamed(config, client, chosen)
    return Participants(scenario, spec, table, chosen, anomalies, clients)


def _clients(scenario: Scenario, path: Path, spec: ModelSpec) -> Array | None:
    """Returns the client of each row, in the words of the data file."""
    by_client = msgspec.structs.replace(scenario.data, group=scenario.partition.client)
    table = read_table(by_client, spec, path.parent)
    if table.group is None or not table.group_names:
        return table.group
    return client_values(table.group_names, table.group)


def _renamed(config: PartitionConfig, client: Array, agents: Iterable[str]) -> dict[str, str]:
    """Returns the client of each agent whose id does not carry it."""
    values = client_ids(config, client)
    return {a: str(values[a]) for a in agents if a != f"{config.prefix}-{values[a]}"}


def _no_agent(name: str, known: Sequence[str]) -> str:
    rest = len(known) - _LISTED
    listed = ", ".join(known[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
    return f"no agent {name!r}; {did_you_mean(name, known)}agents: {listed}"


def _anomalies(scenario: Scenario, path: Path, spec: ModelSpec) -> Array | None:
    if scenario.detection is None:
        return None
    # Read like row weights: one number for each row.
    key = "array" if scenario.data.format == "npz" else "column"
    source = WeightSource(**{key: scenario.detection.label})
    labelled = msgspec.structs.replace(scenario.data, weight=source)
    return read_table(labelled, spec, path.parent).arrays["weight"]


def _labels(table: Table, spec: ModelSpec, kind: Kind, path: Path) -> Array:
    """Returns the label of each row: of the first target that has one class or number a row.

    Raises:
        ConfigError: the kind of partition goes by labels, and no target has one a row.
    """
    if kind not in BY_LABEL:
        return np.zeros(table.rows, np.int8)
    for target in spec.targets:
        if prod(target.shape) == 1:
            return table.arrays[target.name].reshape(-1)
    classes = row_classes(table.arrays, spec, np.arange(table.rows))
    if classes is None:
        raise ConfigError(
            f"{path}: partition.kind {kind} goes by one class or number a row, and no target of "
            f"{spec.name} has one: take kind iid or client"
        )
    return classes


def _choose(rows: RowsByAgent, scenario: Scenario, agents: int | None, path: Path) -> RowsByAgent:
    if agents is None:
        return rows
    unseen = {rows.position(name) for name in scenario.unseen}
    least = len(unseen) + 1
    if not least <= agents <= len(rows):
        advice = "; partition.kind iid, shards, dirichlet or sample makes more agents"
        advice = advice if scenario.partition.kind == "client" else ""
        raise ConfigError(
            f"{path}: {agents} agents: this scenario takes {least} to {len(rows)}{advice}"
        )
    learns = np.ones(len(rows), bool)
    learns[list(unseen)] = False
    learners = np.flatnonzero(learns)[: agents - len(unseen)]
    return rows.taken(np.union1d(learners, np.array(list(unseen), np.int64)))
