"""Participants: whose rows an agent has, and who only measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from edge_agent.config import AgentConfig
from edge_agent.data.dataset import load_dataset
from fedge.errors import ConfigError
from fedge.yaml_config import load_config
from fleet.participants import Participants, make_participants
from fleet.runs import folders
from fleet.scenario import load_scenario
from models.package.spec import ModelSpec, TensorSpec
from models.zoo import load_zoo

SPEC = load_zoo("house_price").spec


def participants(
    folder: Path, clients: list[str], spec: ModelSpec = SPEC, **changes: Any
) -> Participants:
    """Six rows of each client in turn; b counts all rows of the file."""
    lines = [
        f"{who},0.{row},{6 * n + row},{row}" for n, who in enumerate(clients) for row in range(6)
    ]
    (folder / "rows.csv").write_text("\n".join(["user,a,b,label", *lines, ""]))
    document: dict[str, Any] = {
        "name": "s",
        "description": "d",
        "licence": "made up",
        "data": {
            "path": "rows.csv",
            "inputs": {"features": {"columns": ["a", "b"]}},
            "target": {"column": "label", "scale": 2, "offset": 1},
            "normalise": "none",
            **changes.pop("data", {}),
        },
        "partition": {"kind": "client", "client": "user", "prefix": "user"},
        "federation": {"model": "house_price"},
        **changes,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(document))
    return make_participants(load_scenario(folder / "s.yaml"), folder / "s.yaml", spec, None)


def test_a_client_of_a_csv_file_keeps_its_number_and_unseen_picks_that_person(
    tmp_path: Path,
) -> None:
    found = participants(tmp_path, ["33", "7", "36"], unseen=["user-33"])
    assert set(found.rows) == {"user-33", "user-7", "user-36"}
    assert (found.unseen, found.learners) == (["user-33"], ["user-7", "user-36"])
    data = found.dataset("user-33")
    assert (data.num_train, data.num_test) == (0, 6)
    assert data.arrays["features"][:, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.clients == {}


def test_an_unknown_unseen_agent_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        participants(tmp_path, ["33", "7", "36"], unseen=["user-31"])
    line = str(caught.value)
    assert (
        "unseen: no agent 'user-31'; did you mean user-36? agents: user-7, user-33, user-36" in line
    )


def test_clients_that_make_no_ids_are_numbered_and_the_mapping_is_known(tmp_path: Path) -> None:
    found = participants(tmp_path, ["Pump 3 (north)", "Pump 1"])
    assert found.clients == {"user-0": "Pump 1", "user-1": "Pump 3 (north)"}
    assert found.dataset("user-1").arrays["features"][0, 1] == 0


@pytest.mark.parametrize("split", ["time", "random"])
def test_an_agent_s_own_file_is_split_and_scaled_as_the_whole_file_is(
    tmp_path: Path, split: str
) -> None:
    found = participants(tmp_path, ["33", "7"], data={"split": split, "test_fraction": 0.5})
    folders.write_agent(tmp_path / "a", "user-7", found, "s", {})
    config = load_config(tmp_path / "a" / "agent.yaml", AgentConfig)
    own, whole = load_dataset(config.data, SPEC, tmp_path / "a"), found.dataset("user-7")
    for name in ("features", "target"):
        assert own.arrays[name].tolist() == whole.arrays[name].tolist()
    assert sorted(own.arrays["target"].tolist()) == [1, 3, 5, 7, 9, 11]
    assert (own.num_train, own.num_test) == (3, 3)


def test_an_agent_s_own_file_is_stratified_as_the_whole_file_is(tmp_path: Path) -> None:
    kinds = TensorSpec("target", (), "int32")
    spec = msgspec.structs.replace(
        SPEC, targets=(kinds,), outputs=(TensorSpec("prediction", (6,)),)
    )
    data = {"split": "stratified", "target": {"column": "label"}, "test_fraction": 0.5}
    found = participants(tmp_path, ["33", "7", "33"], spec, data=data)
    folders.write_agent(tmp_path / "a", "user-33", found, "s", {})
    config = load_config(tmp_path / "a" / "agent.yaml", AgentConfig)
    own, whole = load_dataset(config.data, spec, tmp_path / "a"), found.dataset("user-33")
    assert own.arrays["features"].tolist() == whole.arrays["features"].tolist()
    assert np.sort(own.arrays["target"][own.num_train :]).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("split", ["time", "random"])
def test_an_agent_s_own_file_is_in_the_order_of_time(tmp_path: Path, split: str) -> None:
    data = {"split": split, "test_fraction": 0.5, "time": {"column": "b"}, "nan": "drop"}
    participants(tmp_path, ["33", "7"], data=data)
    head, *lines = (tmp_path / "rows.csv").read_text().splitlines()
    lines[7] = lines[7].replace(",7,", ",unknown,")
    (tmp_path / "rows.csv").write_text("\n".join([head, *lines[::-1], ""]))
    scenario = load_scenario(tmp_path / "s.yaml")
    found = make_participants(scenario, tmp_path / "s.yaml", SPEC, None)
    folders.write_agent(tmp_path / "a", "user-7", found, "s", {})
    config = load_config(tmp_path / "a" / "agent.yaml", AgentConfig)
    own, whole = load_dataset(config.data, SPEC, tmp_path / "a"), found.dataset("user-7")
    assert own.arrays["features"].tolist() == whole.arrays["features"].tolist()
    assert sorted(own.arrays["features"][:, 1].tolist()) == [6, 8, 9, 10, 11]
    if split == "time":
        assert own.arrays["features"][:, 1].tolist() == [6, 8, 9, 10, 11]


def test_windows_of_clients_never_cross_two_of_them(tmp_path: Path) -> None:
    window = {"length": 2, "columns": ["b"]}
    with pytest.raises(ConfigError, match=r"must not cross two clients: set data\.group: user"):
        participants(tmp_path, ["33", "7"], data={"window": window, "inputs": {}})
    data = {"window": window, "inputs": {}, "group": "user", "test_fraction": 0}
    found = participants(tmp_path, ["33", "7"], data=data)
    assert found.dataset("user-7").arrays["features"].tolist() == [[6, 7], [8, 9], [10, 11]]


def test_a_fleet_larger_than_the_data_draws_rows_for_each_agent(tmp_path: Path) -> None:
    found = participants(
        tmp_path,
        ["33", "7"],
        partition={"kind": "sample", "clients": 3000, "rows": 4, "prefix": "pi"},
        unseen=["pi-2", "pi-2999"],
    )
    assert (len(found.rows), len(found.learners)) == (3000, 2998)
    assert found.unseen == ["pi-2", "pi-2999"]
    assert "train" not in found.phases("pi-2")
    assert "train" in found.phases("pi-3")
    assert {len(rows) for rows in found.rows.values()} == {4}
    assert 0 <= found.rows.index.min() < found.rows.index.max() < 12
    data = found.dataset("pi-2998")
    assert data.num_train + data.num_test == 4


@pytest.mark.parametrize("split", ["time", "random"])
def test_rows_that_an_agent_drew_twice_are_split_like_others(tmp_path: Path, split: str) -> None:
    sampled = {"kind": "sample", "clients": 2, "rows": 40}
    found = participants(
        tmp_path, ["33", "7"], partition=sampled, data={"split": split, "test_fraction": 0.25}
    )
    data = found.dataset("agent-0")
    assert sorted(data.rows.tolist()) == found.rows["agent-0"].tolist()
    assert (len(data.rows), 0 < data.num_test < 40) == (40, True)


def _kind(kind: str) -> dict[str, Any]:
    return {"kind": kind, "clients": 3, "prefix": "pi"}


def test_a_dirichlet_draw_over_prices_is_refused_with_the_file(tmp_path: Path) -> None:
    who = [str(number) for number in range(60)]
    data = {"target": {"column": "b"}}
    with pytest.raises(ConfigError, match=r"s\.yaml: partition: kind dirichlet draws a mix of cl"):
        participants(tmp_path, who, data=data, partition=_kind("dirichlet"))
    found = participants(tmp_path, who, data=data, partition=_kind("shards"))
    assert found.rows.sizes.tolist() == [120] * 3


@pytest.mark.parametrize("kind", ["shards", "dirichlet"])
def test_a_partition_by_label_needs_a_target(tmp_path: Path, kind: str) -> None:
    spec = msgspec.structs.replace(SPEC, targets=(), metrics=())
    with pytest.raises(ConfigError, match=f"partition.kind {kind} goes by one class or number a"):
        participants(tmp_path, ["33"], spec, partition=_kind(kind), data={"target": None})
    iid = participants(tmp_path, ["33"], spec, partition=_kind("iid"), data={"target": None})
    assert iid.rows.sizes.sum() == 6


def test_targets_with_a_number_for_each_class_are_labels(tmp_path: Path) -> None:
    kinds = TensorSpec("target", (2,), classes=("low", "high"))
    spec = msgspec.structs.replace(
        SPEC, targets=(kinds,), outputs=(TensorSpec("prediction", (2,)),), metrics=()
    )
    high = np.random.default_rng(0).integers(0, 2, 300)
    one_hot = np.stack([1 - high, high], 1)
    np.savez(tmp_path / "rows.npz", x=np.zeros((300, 2)), y=one_hot)
    participants(tmp_path, ["33"])
    document = yaml.safe_load((tmp_path / "s.yaml").read_text())
    document["partition"] = {**_kind("shards"), "shards_per_client": 1}
    document["data"] = {"path": "rows.npz", "inputs": {"features": {"array": "x"}}}
    document["data"] |= {"target": {"array": "y"}, "normalise": "none"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(document))
    found = make_participants(load_scenario(tmp_path / "s.yaml"), tmp_path / "s.yaml", spec, None)
    shares = sorted(found.table.arrays["target"][rows, 1].mean() for rows in found.rows.values())
    assert (shares[0], shares[-1]) == (0, 1)
