"""Options that change a scenario: `--agents`, `--rounds`, `--seed` and `--set`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from coordinator.machine.roster import MAX_AGENTS
from fedge.errors import ConfigError
from fleet.cli import options
from fleet.cli.main import cli
from fleet.cli.options import changes_of

SCENARIO = str(Path(__file__).parents[3] / "examples/house_price.yaml")


def simulate(*words: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", SCENARIO, *words])


@pytest.mark.parametrize(
    ("change", "given", "words"),
    [
        ("rounds=3", {"rounds": 2}, "--rounds 2 and --set rounds=3 are one key: give one of them"),
        ("federation.rounds=0", {"rounds": 2}, "--rounds 2 and --set federation.rounds=0 are one"),
        ("agents=5", {"agents": 5}, "--agents 5 and --set agents=5 are one key"),
        ("seed=1", {"seed": 0}, "--seed 0 and --set seed=1 are one key"),
    ],
)
def test_a_key_is_given_in_one_way(change: str, given: dict[str, Any], words: str) -> None:
    given = dict.fromkeys(("agents", "rounds", "seed")) | given
    with pytest.raises(ConfigError, match=f"^{words}"):
        changes_of((change,), **given)


def test_options_and_changes_of_other_keys_go_together() -> None:
    found = changes_of(("training.epochs=2", "federation={rounds: 4}"), 5, 3, None)
    assert found == {
        "agents": 5,
        "federation.rounds": 3,
        "federation.training.epochs": 2,
        "federation": {"rounds": 4},
    }


def test_more_agents_than_a_federation_has_are_refused_at_once() -> None:
    assert options.MAX_AGENTS == MAX_AGENTS
    done = simulate(f"--agents={MAX_AGENTS + 1}")
    assert done.exit_code == 2
    assert "Invalid value for '--agents': 1000001 is not in the range 1<=x<=1000000." in done.output


def test_what_is_no_number_is_called_that() -> None:
    done = simulate("--agents=abc")
    assert done.exit_code == 2
    assert "Invalid value for '--agents': 'abc' is not a valid whole number." in done.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model=nonexistent", "federation.model: 'nonexistent' is no folder of a package and not"),
        ("model=house_prise", "did you mean house_price?"),
        ("model=handwritten_digit", "baselines.metric: 'mae' is no metric of the model handw"),
    ],
)
def test_another_model_is_refused_with_what_to_do(change: str, words: str, tmp_path: Path) -> None:
    done = simulate("--set", change, "--out", str(tmp_path))
    assert done.exit_code == 2
    assert words in done.output
