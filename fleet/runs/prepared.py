"""A scenario, read and checked: what every way to run it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError
from fleet.baselines import check_baselines
from fleet.participants import Participants, make_participants
from fleet.scenario import (
    Scenario,
    coordinator_config,
    fleet_changes,
    load_scenario,
    scenario_package,
)
from models.package.package import ModelPackage

#: No agent has the name of the other process.
_RESERVED = "coordinator"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scenario with its agents, its federation and its model.

    Attributes:
        path: of the scenario, which other paths are relative to.
        scenario: with its changes.
        participants: the agents and their rows.
        config: of the federation.
        package: the model, with the run's initial weights.
    """

    path: Path
    scenario: Scenario
    participants: Participants
    config: CoordinatorConfig
    package: ModelPackage


def prepare(path: Path, changes: Mapping[str, Any]) -> Prepared:
    """Returns a scenario ready to be simulated.

    Raises:
        ConfigError: scenario, data or model are wrong.
    """
    scenario = load_scenario(path, changes)
    package = scenario_package(scenario, path)
    check_baselines(scenario.baselines, package.spec, path)
    participants = make_participants(scenario, path, package.spec, scenario.agents)
    if _RESERVED in participants.rows:
        raise ConfigError(f"{path}: an agent is named {_RESERVED!r}; choose another name")
    config = coordinator_config(scenario, path, **fleet_changes(scenario, len(participants.asked)))
    return Prepared(path, scenario, participants, config, package)
