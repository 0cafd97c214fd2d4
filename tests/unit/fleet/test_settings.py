"""Changes to a scenario by dotted key: `--set key=value`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError
from fleet.scenario import Scenario, coordinator_config, load_scenario, scenario_changes
from fleet.settings import apply_changes, full_keys, parse_changes

DOCUMENT: dict[str, Any] = {
    "name": "s",
    "description": "d",
    "licence": "made up",
    "data": {"path": "data.npz"},
    "partition": {"kind": "dirichlet", "clients": 4},
    "unseen": ["agent-2", "agent-3"],
    "federation": {"model": "house_price", "algorithm": "fedprox", "rounds": 7},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    return path


def load(path: Path, *items: str) -> Scenario:
    return load_scenario(path, parse_changes(items))


def federation(path: Path, *items: str) -> CoordinatorConfig:
    return coordinator_config(load(path, *items), path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.05", 0.05),
        ("1e-4", 1e-4),
        ("true", True),
        ("adam", "adam"),
        ("a=b", "a=b"),
        ("{name: fedprox, mu: 0.1}", {"name": "fedprox", "mu": 0.1}),
        ("[a, b]", ["a", "b"]),
        ("null", None),
        ("", None),
    ],
)
def test_a_value_is_read_as_yaml(text: str, value: Any) -> None:
    assert parse_changes([f"a.b={text}"]) == {"a.b": value}


def test_of_two_changes_of_one_key_the_later_counts() -> None:
    assert parse_changes(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize("item", ["rounds", "=3", "a..b=3", "a b=3", ".a=1", "a.=1", "a[x]=1"])
def test_another_form_is_an_error_with_an_example(item: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set .*: expected KEY=VALUE, as in federation\."):
        parse_changes([item])


def test_a_value_that_is_not_yaml_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"^--set a=\[b: line \d: not YAML: "):
        parse_changes(["a=[b"])


def test_values_of_the_file_are_replaced(path: Path) -> None:
    changes = ["partition.alpha=0.1", "federation.training.learning_rate=0.5", "unseen=[agent-1]"]
    scenario = load(path, *changes)
    config = coordinator_config(scenario, path)
    assert scenario.partition.alpha == 0.1
    assert scenario.partition.clients == 4
    assert scenario.unseen == ("agent-1",)
    assert config.training.learning_rate == 0.5
    assert config.rounds == 7


def test_federation_may_be_left_out_of_a_key(path: Path) -> None:
    config = federation(path, "training.batch_size=5", "rounds=2", "start.agents=3")
    assert (config.training.batch_size, config.rounds, config.start.agents) == (5, 2, 3)
    assert scenario_changes({"rounds": 2, "data.path": "x"}) == {
        "federation.rounds": 2,
        "data.path": "x",
    }


def test_a_key_of_the_scenario_goes_before_one_of_its_federation() -> None:
    assert "federation" in CoordinatorConfig.__struct_fields__
    names = set(CoordinatorConfig.__struct_fields__) & set(Scenario.__struct_fields__)
    assert full_keys(dict.fromkeys(names, 1), Scenario) == dict.fromkeys(names, 1)


@pytest.mark.parametrize("key", ["unseen.1", "unseen[1]"])
def test_an_item_of_a_list_is_replaced_by_index(path: Path, key: str) -> None:
    assert load(path, f"{key}=agent-0").unseen == ("agent-2", "agent-0")


def test_a_setting_below_a_plain_name_keeps_the_name(path: Path) -> None:
    assert federation(path, "algorithm.mu=0.3").algorithm == {"name": "fedprox", "mu": 0.3}


def test_a_setting_below_a_choice_that_is_not_given_keeps_the_default(path: Path) -> None:
    changed = apply_changes(DOCUMENT, {"federation.codec.block": 64})
    assert changed["federation"]["codec"] == {"name": "int8", "block": 64}


def test_a_choice_is_replaced_whole(path: Path) -> None:
    assert federation(path, "algorithm={name: fedprox, mu: 0.1}").algorithm == {
        "name": "fedprox",
        "mu": 0.1,
    }
    assert federation(path, "algorithm=scaffold").algorithm == "scaffold"


def test_a_section_that_is_missing_is_begun(path: Path) -> None:
    scenario = load(path, "baselines.pooled=true", "baselines.within=0.5", "detection.label=odd")
    assert scenario.baselines.within == 0.5
    assert scenario.detection is not None
    assert scenario.detection.label == "odd"


@pytest.mark.parametrize("turn", [1, -1])
def test_a_key_is_changed_before_those_below_it(path: Path, turn: int) -> None:
    items = ["training={epochs: 3, batch_size: 5}", "training.epochs=4"][::turn]
    training = federation(path, *items).training
    assert (training.epochs, training.batch_size) == (4, 5)


@pytest.mark.parametrize(
    ("one", "other"),
    [("training.epochs", "federation.training.epochs"), ("unseen.0", "unseen[0]")],
)
def test_two_spellings_of_one_key_are_refused(path: Path, one: str, other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(path, f"{one}=1", f"{other}=2")
    assert str(caught.value) == f"{one} and {other} are one key: give one of them"


def test_the_document_is_left_as_it_is() -> None:
    before = copy.deepcopy(DOCUMENT)
    apply_changes(DOCUMENT, {"unseen.0": "x", "federation.rounds": 1, "data.path": "y"})
    assert before == DOCUMENT


def test_a_missing_required_key_may_be_given(path: Path) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != "licence"}
    path.write_text(yaml.safe_dump(document))
    assert load(path, "licence=mine").licence == "mine"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["federation.rounds=x"], r"--set federation.rounds=x: expected a whole number, got 'x'"),
        (["rounds=0"], r"--set federation.rounds=0: expected .* >= 1, got 0"),
        (
            ["training.learning_rat=1"],
            r"--set federation.training.learning_rat=1: unknown key; did you mean learning_rate\? "
            r"known keys: .*batch_size",
        ),
        (
            ["federation.trainin.epochs=1"],
            r"--set federation.trainin.epochs=1: federation.trainin: unknown key; "
            r"did you mean training\? known keys: ",
        ),
        (["partitoin.alpha=1"], r"--set partitoin.alpha=1: partitoin: unknown key; did you mean "),
        (
            ["learning_rate=0.2"],
            r"--set learning_rate=0.2: learning_rate: unknown key; did you mean "
            r"training.learning_rate\? known keys: ",
        ),
        (["alpha=2"], r"--set alpha=2: alpha: unknown key; did you mean partition.alpha\? "),
        (["agents=1000001"], r"--set agents=1000001: expected .* <= 1000000, got 1000001"),
        (
            ["partition.clients=1000001"],
            r"--set partition.clients=1000001: partition: clients is 1,000,001: .* 1,000,000 ag",
        ),
        (["partition.alpha=0"], r"--set partition.alpha=0: partition: alpha must be .*, got 0"),
        (
            ["partition.rows=5"],
            r"--set partition.rows=5: kind dirichlet has no use for rows: leave it out, or set "
            "partition.kind=sample",
        ),
        (
            ["partition.kind=iid", "partition.alpha=1"],
            r"--set partition.alpha=1: kind iid has no use for alpha: .* partition.kind=dirichlet",
        ),
        (
            ["partition={kind: iid, clients: 2, alpha: 1}"],
            r"--set partition={.*}: partition.alpha: kind iid has no use for alpha",
        ),
        (
            ["training={lr: 1}"],
            r"--set federation.training={lr: 1}: federation.training.lr: unknown key",
        ),
        (
            ["algorithm.nu=1"],
            r"--set federation.algorithm.nu=1: unknown key; known keys: mu, name",
        ),
        (
            ["rounds=3", "algorithm=fedpro"],
            r"--set federation.algorithm=fedpro: unknown algorithm 'fedpro'; did you mean fedprox",
        ),
        (["rounds.x=1"], r"--set federation.rounds.x=1: federation.rounds is 7, which has no keys"),
        (["name.x=1"], r"--set name.x=1: name is s, which has no keys"),
        (
            ["unseen.2=a"],
            r"--set unseen.2=a: unseen is a list of 2: expected an index below .* '2'",
        ),
        (["state_dir=x"], r"--set federation.state_dir=x: set by the fleet; leave it out"),
        (["federation=3"], r"--set federation=3: expected a mapping of keys, got 3"),
        (["plugins=[x.py]"], r"--set federation.plugins=\[x.py\]: federation.plugins\[0\]: "),
        (
            ["show=agents", "refuse=[agent-0]"],
            r"--set show=agents --set refuse=\[agent-0\]: refuse applies to the task statistics",
        ),
        (["name=" + "x" * 99], r"--set name=x{57}\.\.\.: expected .*, got 'x+\.\.\."),
    ],
)
def test_a_wrong_change_is_an_error_with_the_change_in_front(
    path: Path, items: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        load(path, *items)


def test_another_kind_of_partition_leaves_out_what_the_file_says_of_its_own(path: Path) -> None:
    partition = {"kind": "dirichlet", "clients": 4, "alpha": 0.1, "minimum": 3}
    path.write_text(yaml.safe_dump(DOCUMENT | {"partition": partition}))
    assert load(path, "partition.kind=iid").partition.clients == 4
    assert load(path, "partition.kind=sample", "partition.rows=7").partition.rows == 7
    assert load(path, "partition.kind=dirichlet").partition.alpha == 0.1


def test_a_file_with_a_setting_of_another_kind_of_partition_is_refused(path: Path) -> None:
    path.write_text(yaml.safe_dump(DOCUMENT | {"partition": {"kind": "iid", "alpha": 0.1}}))
    with pytest.raises(ConfigError, match="kind iid needs the number of clients"):
        load(path)
    partition = {"kind": "iid", "clients": 4, "alpha": 0.1}
    path.write_text(yaml.safe_dump(DOCUMENT | {"partition": partition}))
    with pytest.raises(ConfigError, match=rf"^{path}: partition.alpha: kind iid has no use for al"):
        load(path)


def test_an_error_of_the_file_names_the_file(path: Path) -> None:
    path.write_text(yaml.safe_dump(DOCUMENT | {"shwo": "agents"}))
    with pytest.raises(ConfigError, match=rf"^{path}: shwo: unknown key; did you mean show\?"):
        load(path, "rounds=3")


def test_every_key_of_a_scenario_can_be_set(path: Path) -> None:
    """As the whole resolved mapping of a scenario, key by key."""
    scenario = load(path)
    plain = msgspec.to_builtins(scenario, enc_hook=str)
    plain["partition"] = {"kind": "dirichlet", "clients": 4, "alpha": 0.5, "minimum": 1}
    for key, value in plain.items():
        same = load_scenario(path, {key: value})
        assert same == load_scenario(path), key
