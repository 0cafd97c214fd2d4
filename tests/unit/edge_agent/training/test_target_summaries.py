"""What a device's status says of its targets: coarse, and nothing where its owner does not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from broker.protocol import messages
from broker.protocol.messages import TargetSummary
from edge_agent.data.dataset import load_dataset
from edge_agent.data.targets import target_findings, target_summaries
from edge_agent.machine.events import PackageFailed
from edge_agent.machine.status import AgentFacts, agent_status
from edge_agent.training.package_loaded import package_loaded
from models.package.spec import TensorSpec
from models.runtime.program import Program
from models.zoo import load_zoo
from tests.unit.edge_agent.training.dataset_files import CLASSES, config, make_spec, npz

PROTOCOL = Path(__file__).parents[4] / "docs" / "protocol.md"


def summary(values: object, target: TensorSpec | None = None) -> TargetSummary | None:
    spec = make_spec(target=target)
    arrays = {"target": np.array(values, np.int32 if target == CLASSES else np.float32)}
    return target_summaries(arrays, spec).get("target")


def test_classes_that_occur_are_listed_by_index() -> None:
    assert summary([0, 2] * 5, CLASSES) == TargetSummary(classes=(0, 2))


def test_few_rows_are_not_described() -> None:
    assert summary([0, 2, 0, 2, 0, 2, 0, 2, 0], CLASSES) is None
    assert summary([1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("scale", [1.0, 64.0, 4.0**-5])
def test_level_and_spread_say_which_unit_and_little_more(scale: float) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for mean in (17.0, 18.5, 20.0, 22.0):
        for std in (2.1, 3.0, 4.0, 7.9):
            values = rng.normal(size=400)
            values = (values - values.mean()) / values.std() * std + mean
            found = summary(values * scale)
            assert found is not None
            assert found.level is not None
            seen.add((found.level / scale, found.spread / scale))
    assert seen == {(16.0, 4.0)}  # 16 kinds of rooms look the same


def test_equal_targets_give_away_no_number() -> None:
    assert summary([21.5] * 20) == TargetSummary()


def test_a_target_of_several_numbers_is_not_described() -> None:
    assert summary(np.ones((12, 2)), TensorSpec("target", (2,))) is None


def test_numbers_are_in_the_unit_of_the_spec() -> None:
    watts = TensorSpec("target", units=("W",), mean=(0.0,), std=(1024.0,))
    assert summary([1.0, -1.0] * 10, watts) == TargetSummary(level=0.0, spread=1024.0)


def test_the_example_of_the_protocol_is_right() -> None:
    text = PROTOCOL.read_text()
    text = text[text.index("### TargetSummary") :]
    mean, std = map(float, re.findall(r"mean ([\d.]+) and standard deviation ([\d.]+)", text)[0])
    values = np.tile([mean - std, mean + std], 10)
    examples = re.findall(r"(?s)```json\n(.*?)```", text)[:2]
    assert summary(values) == messages.decode(examples[1].encode(), TargetSummary)
    assert json.loads(examples[0]) == {"classes": [0, 2, 3]}


@pytest.mark.parametrize("describe", [True, False])
def test_the_owner_decides_whether_the_status_says_it(tmp_path: Path, describe: bool) -> None:
    package = load_zoo("house_price")
    npz(tmp_path, features=np.ones((60, 2)), y=np.arange(60.0))
    data = load_dataset(config(), package.spec, tmp_path)
    program = Program(package.program, package.spec)
    odd = [*target_findings(data.arrays, package.spec, data.num_train, data.split)]
    loaded = package_loaded("0" * 64, program, data, odd, describe=describe)
    facts = AgentFacts("pi-1", "houses", "a")
    status = agent_status(facts, loaded, None, None, "", (), 0, "", 0, online=True)
    assert (status.train_examples, status.test_examples) == (48, 12)
    if describe:
        assert status.targets == {"target": TargetSummary(level=0.0, spread=16.0)}
        assert len(status.warnings) == 1
        assert "sorted by it" in status.warnings[0]
    else:
        assert (status.targets, status.warnings) == ({}, ())
    # While it cannot take part it says nothing of its rows.
    away = PackageFailed("0" * 64, "no_data", "gone")
    assert agent_status(facts, loaded, away, None, "", (), 0, "", 0, online=True).targets == {}
