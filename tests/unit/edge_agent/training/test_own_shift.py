"""A device whose labels are shifted finds it by the federation's model, and says so."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.data.dataset import LocalDataset
from edge_agent.training.own_shift import own_shift
from edge_agent.training.trainer import train
from learning.algorithms.training import training_plan
from learning.phases.evaluate import LABEL_SHIFT, EvaluateCollector
from learning.phases.phase import Received
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.runtime.program import Program
from models.runtime.rows import Array, Rows
from models.zoo import load_zoo

PACKAGE = load_zoo("wearable_activity")
SPEC = PACKAGE.spec
ROWS = 140


def dataset(shift: int = 0) -> LocalDataset:
    """Windows at a level that tells their activity; labels 1 to 5 of 0 to 6, then shifted."""
    rng = np.random.default_rng(1)
    (window,) = SPEC.inputs
    activity = 1 + np.arange(ROWS) % 5
    values = rng.normal(0, 0.1, (ROWS, *window.shape))
    values += activity.reshape(ROWS, *[1] * len(window.shape)) - 3
    labels = (activity + shift).astype(np.int32)
    rows = np.arange(ROWS)
    arrays = {window.name: values.astype(np.float32), "target": labels}
    return LocalDataset(arrays, rows[:70], rows[70:], rows, {})


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(PACKAGE.program, SPEC)


@pytest.fixture(scope="module")
def theta(program: Program) -> F32:
    """Trained on labels as they should be."""
    plan = training_plan(
        {"epochs": 40, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.01}
    )
    right = dataset().part("train")
    whole = PACKAGE.whole(PACKAGE.initial)
    return train(program, whole, right, plan, np.random.default_rng(0), lambda: False).theta


@pytest.mark.parametrize(("shift", "found"), [(0, 0), (1, 1), (-1, -1)])
def test_a_device_finds_that_its_labels_are_shifted(
    program: Program, theta: F32, shift: int, found: int
) -> None:
    data = dataset(shift)
    sums = program.evaluate(theta, data.part("test"))
    assert own_shift(program, theta, data, sums, version=5) == found


def test_an_early_version_and_an_accuracy_that_is_good_enough_cost_nothing(theta: F32) -> None:
    class NeverAsked(Program):
        def predict(self, theta: F32, rows: Rows) -> dict[str, Array]:
            raise AssertionError("predicted")

    program = NeverAsked(PACKAGE.program, SPEC)
    shifted, right = dataset(1), dataset()
    sums = program.evaluate(theta, shifted.part("test"))
    assert own_shift(program, theta, shifted, sums, version=4) == 0
    sums = program.evaluate(theta, right.part("test"))
    assert own_shift(program, theta, right, sums, version=5) == 0


def test_the_coordinator_keeps_what_the_device_says() -> None:
    collector = EvaluateCollector()
    for name, values in (
        ("a", {}),
        ("b", {LABEL_SHIFT: (1.0,)}),
        ("c", {LABEL_SHIFT: ()}),
        ("d", {LABEL_SHIFT: (1e100,)}),
    ):
        collector.accept(name, Received({}, Sums(1.0, 4.0, {}), values, 0))
    assert collector.label_shifts == {"b": 1}
    assert sorted(collector.sums) == ["a", "b", "c", "d"]
