"""Grid files: combinations, names, and checks before the first run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from fedge.errors import ConfigError
from fleet.experiments.execution.plan import Plan, make_plan
from fleet.experiments.naming import case_name, folder_name, short_keys, value_text

HOUSE = str(Path(__file__).parents[4] / "examples/house_price.yaml")


def plan(tmp_path: Path, **grid: object) -> Plan:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"scenario": HOUSE} | grid, sort_keys=False))
    return make_plan(path)


def test_every_combination_is_a_case_with_a_name_of_its_own(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        grid={
            "training.learning_rate": [0.1, 0.2],
            "federation.algorithm": ["fedavg", {"name": "fedprox", "mu": 0.5}],
        },
        seeds=2,
    )
    assert [one.case.name for one in made.cases] == [
        "learning_rate=0.1,algorithm=fedavg",
        "learning_rate=0.1,algorithm=fedprox-mu=0.5",
        "learning_rate=0.2,algorithm=fedavg",
        "learning_rate=0.2,algorithm=fedprox-mu=0.5",
    ]
    assert made.varied == ("training.learning_rate", "algorithm")
    assert made.seeds == (0, 1)
    assert made.cases[2].changes["federation.training.learning_rate"] == 0.2
    federation = made.cases[2].resolved.document(0)["configuration"]["federation"]
    assert federation["training"]["learning_rate"] == 0.2


def test_cases_have_names_and_settings_of_their_own(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        cases=[{"name": "plain"}, {"name": "adam", "training.optimizer": "adam"}],
        set={"rounds": 3},
        options={"agents": 4},
    )
    assert [one.case.name for one in made.cases] == ["plain", "adam"]
    # What a case does not set has the scenario's value.
    assert [one.case.settings for one in made.cases] == [
        {"training.optimizer": "sgd"},
        {"training.optimizer": "adam"},
    ]
    assert {one.resolved.rounds for one in made.cases} == {3}
    assert {one.changes["agents"] for one in made.cases} == {4}


def test_cases_and_grid_multiply_and_scenarios_too(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        scenario=[HOUSE, str(Path(HOUSE).with_name("heart_disease.yaml"))],
        cases=[{"name": "one", "training.epochs": 1}, {"name": "two", "training.epochs": 2}],
        grid={"rounds": [1, 2]},
    )
    names = [one.case.name for one in made.cases]
    assert len(names) == 8
    assert names[0] == "house_price,one,rounds=1"
    assert {one.case.scenario for one in made.cases} == {"house_price", "heart_disease"}


def test_a_grid_without_variation_is_one_case(tmp_path: Path) -> None:
    made = plan(tmp_path, seeds=[3, 5])
    assert [one.case.name for one in made.cases] == ["house_price"]
    assert made.seeds == (3, 5)


def test_options_of_the_command_line_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"scenario": HOUSE, "set": {"rounds": 3}, "seeds": 9}))
    made = make_plan(path, {"rounds": 2}, seeds=1)
    assert made.cases[0].resolved.rounds == 2
    assert made.seeds == (0,)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (
            {"grid": {"training.learning_rate": [0.1, "fast"]}},
            r"case learning_rate=fast: .*learning_rate=fast: expected a number",
        ),
        ({"grid": {"training.learning_rat": [0.1]}}, r"did you mean learning_rate"),
        ({"grid": {"trainin.epochs": [1]}}, r"grid: .*trainin: unknown key"),
        ({"grid": {"rounds": []}}, r"grid\.rounds is empty"),
        ({"grid": {"rounds": [1, 1]}}, r"two cases are named 'rounds=1'"),
        ({"cases": [{"rounds": 1}]}, r"cases: name: expected"),
        ({"cases": [{"name": "a/b"}]}, r"cases: name: expected .* got 'a/b'"),
        ({"cases": [{"name": "a"}, {"name": "a"}]}, r"two cases are named 'a'"),
        ({"cases": [{"name": "a", "rounds": 1}], "grid": {"rounds": [2]}}, r"case a: rounds is"),
        ({"set": {"nonsense": 1}}, r"set: .*nonsense: unknown key"),
        ({"grid": {"mode": ["bytes"]}}, r"grid: mode: no key of a scenario: give it in `options`"),
        ({"set": {"seed": 1}}, r"set: seed: list the seeds in `seeds`"),
        ({"grid": {"seed": [1, 2]}}, r"grid: seed: list the seeds in `seeds`"),
        ({"seeds": []}, r"seeds: list each seed once"),
        ({"seeds": [1, 1]}, r"seeds: list each seed once"),
        ({"seeds": 200_000}, r"one case with 200,000 seeds each are more than 100,000 runs"),
        (
            {"grid": {f"data.inputs.a{n}": list(range(1000)) for n in range(40)}},
            r"tiny.yaml: more than 10\^120 cases with one seed each are more than 100,000 runs: sh",
        ),
        (
            {"set": {"rounds": 2}, "grid": {"federation.rounds": [3]}},
            r"grid: rounds is set for all runs too, by `set` or `options`: leave it out there, or",
        ),
        (
            {"set": {"training.epochs": 2}, "cases": [{"name": "a", "training.epochs": 3}]},
            r"case a: training\.epochs is set for all runs too",
        ),
        ({"options": {"agents": 4}, "grid": {"agents": [3]}}, r"grid: agents is set for all runs"),
        (
            {"options": {"rounds": 4}, "set": {"federation.rounds": 4}},
            r"options\.rounds and rounds of `set` are one setting: give one",
        ),
        ({"target": {"metric": "ma", "value": 1}}, r"no metric 'ma': did you mean mae\?"),
        ({"engine": "run", "options": {"signed": True}}, r"options\.signed is no option"),
        ({"engine": "run", "options": {"mode": "bytes"}}, r"options\.mode is no option"),
        ({"options": {"mode": "fast"}}, r"options\.mode: expected one of: .*, got 'fast'"),
        (
            {"options": {"mode": "bytes"}, "grid": {"cohort.over_select": [1.0, 1.5]}},
            r"case over_select=1\.5: --mode bytes: cohort\.over_select: who is late depends",
        ),
        ({"engine": "simulate", "options": {"hosts": 2}}, r"options\.hosts is no option"),
        ({"hooks": ["tensorbord"]}, r"unknown hook 'tensorbord'; did you mean tensorboard"),
        (
            {"grid": {"training": [{"epochs": 9}], "training.epochs": [1, 2]}},
            r"grid: training\.epochs lies in training: give one of them",
        ),
        (
            {"set": {"training.epochs": 1, "federation": {"rounds": 2}}},
            r"set: training\.epochs lies in federation: give one of them",
        ),
        (
            {"cases": [{"name": "a", "training.epochs": 1, "training": {"epochs": 2}}]},
            r"case a: training\.epochs lies in training: give one",
        ),
        (
            {"cases": [{"name": "a", "training": {"epochs": 2}}], "grid": {"training.epochs": [1]}},
            r"case a: training\.epochs lies in training: give one",
        ),
        (
            {"set": {"training.epochs": 1}, "grid": {"training": [{"epochs": 2}]}},
            r"grid: training would replace training\.epochs of `set`",
        ),
        (
            {"set": {"training.epochs": 1}, "cases": [{"name": "a", "training": {"epochs": 2}}]},
            r"case a: training would replace training\.epochs of `set`",
        ),
        (
            {"grid": {"training.epochs": [1], "federation.training.epochs": [2]}},
            r"grid: training\.epochs and federation\.training\.epochs are one key: give one",
        ),
        (
            {"seeds": [99999999999999999999]},
            r"tiny\.yaml: seeds\[0\]: expected .*<= 2147483648, got 9",
        ),
        ({"seeds": 99999999999999999999}, r"tiny\.yaml: .* more than 100,000 runs"),
        (
            {"target": {"metric": "mae", "value": math.nan}},
            r"target: value: expected a finite number, got nan: give what mae is to reach",
        ),
        ({"target": {"metric": "mae", "value": math.inf}}, r"value: expected a finite .*, got inf"),
        ({"scenario": "nowhere.yaml"}, r"nowhere\.yaml: no such file"),
        ({"grids": {}}, r"grids: unknown key"),
    ],
)
def test_a_grid_that_is_wrong_is_refused_before_the_first_run(
    tmp_path: Path, grid: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(tmp_path, **grid)


def test_a_key_that_the_grid_varies_is_not_set_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"scenario": HOUSE, "grid": {"rounds": [1, 2]}}))
    with pytest.raises(ConfigError, match=r"--set rounds: .*varies this key"):
        make_plan(path, {"federation.rounds": 5})


def test_a_key_around_or_below_one_of_the_grid_is_not_set_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    grid = {"scenario": HOUSE, "set": {"cohort.size": 3}, "grid": {"training.epochs": [1, 2]}}
    path.write_text(yaml.safe_dump(grid))
    with pytest.raises(ConfigError, match=r"--set federation\.training: .*varies .*epochs, in it"):
        make_plan(path, {"training": {"epochs": 5}})
    with pytest.raises(
        ConfigError, match=r"--set federation\.cohort: .*sets .*cohort\.size, in it"
    ):
        make_plan(path, {"cohort": {"size": 5}})
    path.write_text(yaml.safe_dump({"scenario": HOUSE, "grid": {"training": [{"epochs": 1}]}}))
    with pytest.raises(ConfigError, match=r"--set .*epochs: .*varies .*training as a whole"):
        make_plan(path, {"training.epochs": 5})


def test_a_grid_may_vary_a_setting_of_what_set_chooses(tmp_path: Path) -> None:
    made = plan(tmp_path, set={"algorithm": "fedprox"}, grid={"algorithm.mu": [0.1, 0.2]})
    federation = made.cases[1].resolved.document(0)["configuration"]["federation"]
    assert federation["algorithm"] | {"name": "fedprox", "mu": 0.2} == federation["algorithm"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (1e-5, "1e-05"),
        (3, "3"),
        (True, "true"),
        (None, "null"),
        ("fedavg", "fedavg"),
        ({"name": "fedprox", "mu": 0.1}, "fedprox-mu=0.1"),
        ({"epochs": 2, "batch_size": 10}, "epochs=2-batch_size=10"),
        ([1, 2], "1+2"),
    ],
)
def test_a_value_is_few_words(value: object, text: str) -> None:
    assert value_text(value) == text


def test_names_need_no_quotes_and_are_no_longer_than_a_folder_may_be() -> None:
    assert folder_name("a b/c(d)'e") == "a_b_c_d_e"
    assert folder_name("..") == "_"
    long, other = folder_name("x" * 300), folder_name("x" * 301)
    assert len(long) <= 100
    assert long != other


def test_a_short_key_is_the_end_that_no_other_has() -> None:
    short = short_keys(["training.learning_rate", "server.learning_rate", "partition.alpha"])
    assert list(short.values()) == [
        "training.learning_rate",
        "server.learning_rate",
        "alpha",
    ]
    assert case_name({"partition.alpha": 0.1}, short) == "alpha=0.1"
