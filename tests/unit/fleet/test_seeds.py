"""Seeds of a run: one for everything random, and one for each thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedge.errors import ConfigError
from fleet.runs import folders
from fleet.scenario import load_scenario, scenario_package, source_package
from fleet.seeds import Seeds, SeedsConfig, resolve_seeds
from fleet.virtual.simulate import SimulationOptions, make_setting
from fleet.virtual.simulation import Setting, Simulation
from models.zoo import load_zoo

ROWS, CLASSES = 60, 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A scenario of six agents, of which a round asks three."""
    rng = np.random.default_rng(1)
    shape = load_zoo("wearable_activity").spec.inputs[0].shape
    window = rng.standard_normal((ROWS, *shape)).astype(np.float32)
    np.savez(tmp_path / "data.npz", window=window, y=rng.integers(0, CLASSES, ROWS))
    document = {
        "name": "s",
        "description": "d",
        "licence": "made up",
        "data": {"path": "data.npz"},
        "partition": {"kind": "iid", "clients": 6},
        "federation": {
            "model": "wearable_activity",
            "rounds": 2,
            "cohort": {"fraction": 0.5},
            "evaluation": {"every": 0},  # so that a record names those who were asked to train
            "training": {"batch_size": 4},
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "s.yaml"


def setting_of(path: Path, changes: Mapping[str, Any]) -> tuple[Setting, dict[str, list[int]]]:
    """The setting of a simulation, and the rows of each agent."""
    _, participants, setting = make_setting(path, SimulationOptions(path.parent, changes))
    return setting, {name: rows.tolist() for name, rows in participants.rows.items()}


def asked_by(setting: Setting) -> list[list[str]]:
    simulation = Simulation(setting)
    simulation.run()
    return [sorted(record.agents) for record in simulation.coordinator.records]


def test_without_a_seed_all_are_0_and_the_weights_are_the_package_s(path: Path) -> None:
    assert load_scenario(path).resolved_seeds == Seeds(0, 0, None, 0, 0)
    setting, _ = setting_of(path, {})
    assert setting.package.digest == load_zoo("wearable_activity").digest


def test_a_seed_is_that_of_everything(path: Path) -> None:
    assert load_scenario(path, {"seed": 7}).resolved_seeds == Seeds(7, 7, 7, 7, 7)
    before, rows_before = setting_of(path, {})
    after, rows_after = setting_of(path, {"seed": 7})
    assert rows_before != rows_after
    assert (after.seed, after.config.seed) == (7, 7)
    assert after.package.digest != before.package.digest
    assert setting_of(path, {"seed": 7})[0].package.digest == after.package.digest


@pytest.mark.parametrize("name", SeedsConfig.__struct_fields__)
def test_each_seed_can_be_set_alone(name: str) -> None:
    found = resolve_seeds(3, SeedsConfig(**{name: 9}))
    assert found == Seeds(3, 3, 3, 3, 3)._replace(**{name: 9})


def test_weights_may_be_the_package_s_with_a_seed(path: Path) -> None:
    assert resolve_seeds(3, SeedsConfig(weights="package")).weights is None
    scenario = load_scenario(path, {"seed": 3, "seeds.weights": "package"})
    assert scenario_package(scenario, path).digest == source_package(scenario, path).digest


def test_seed_0_draws_weights(path: Path) -> None:
    scenario = load_scenario(path, {"seed": 0})
    assert scenario_package(scenario, path).digest != source_package(scenario, path).digest


def test_the_partition_s_seed_deals_the_rows_and_changes_nothing_else(path: Path) -> None:
    before, rows_before = setting_of(path, {"seed": 1})
    after, rows_after = setting_of(path, {"seed": 1, "seeds.partition": 2})
    assert rows_before != rows_after
    assert after.config == before.config
    assert after.package.digest == before.package.digest


def test_the_cohort_s_seed_draws_other_agents(path: Path) -> None:
    before, rows_before = setting_of(path, {"seed": 1})
    after, rows_after = setting_of(path, {"seed": 1, "seeds.cohort": 5})
    assert rows_before == rows_after
    assert after.config.seed == before.config.seed
    assert asked_by(after) != asked_by(before)


def test_a_cohort_s_seed_like_the_others_draws_the_same_agents(path: Path) -> None:
    before, _ = setting_of(path, {"seed": 1})
    after, _ = setting_of(path, {"seed": 1, "seeds.cohort": 1})
    assert asked_by(after) == asked_by(before)


def test_the_training_s_seed_leaves_the_draws_as_they_are(path: Path) -> None:
    before, _ = setting_of(path, {"seed": 1})
    after, _ = setting_of(path, {"seed": 1, "seeds.training": 5})
    assert after.config.seed == 5
    assert asked_by(after) == asked_by(before)


def test_the_seeds_are_in_the_file_of_a_run_s_coordinator(path: Path) -> None:
    changes = {"seed": 1, "seeds.cohort": 5}
    _, participants, setting = make_setting(path, SimulationOptions(path.parent, changes))
    out = path.parent / "out"
    config = folders.write_coordinator(out, participants, setting.package, path, {})
    assert (config.seed, config.cohort.seed, config.cohort.fraction) == (1, 5, 0.5)
    written = yaml.safe_load((out / "coordinator" / "coordinator.yaml").read_text())
    assert (written["seed"], written["cohort"]["seed"]) == (1, 5)


@pytest.mark.parametrize("key", ["federation.seed", "federation.cohort.seed"])
def test_a_scenario_has_its_seeds_at_the_top(path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--set {key}=3: leave it out; a scenario has `seed`"):
        load_scenario(path, {key: 3})


def test_a_wrong_seed_is_an_error(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--set seeds.weights=zoo: expected .*package.*'zoo'"):
        load_scenario(path, {"seeds.weights": "zoo"})
