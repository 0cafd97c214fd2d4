"""One suite over every registered phase: what both halves of any of them must do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from broker.protocol import messages
from broker.protocol.messages import Report
from fedge.errors import ConfigError, UpdateRejected
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import LocalRun, Summary
from learning.algorithms.fedavg import FedAvg, FedAvgSettings
from learning.algorithms.training import TrainingPlan
from learning.phases.phase import (
    WEIGHTS,
    Answer,
    Collector,
    CollectorContext,
    Columns,
    Phase,
    Received,
    Request,
    Trained,
)
from learning.phases.registry import PHASES
from learning.phases.train import TrainCollector
from learning.registry import choice_of
from learning.vector.metrics import Sums
from learning.vector.parameters import F32

every_phase = pytest.mark.parametrize("name", list(PHASES))

THETA = np.array([1.0, 2.0, 3.0], np.float32)
PLAN = TrainingPlan(learning_rate=0.5)
ALGORITHM = FedAvg(FedAvgSettings(), PLAN)
ROWS = 4
TRAIN_SUMS, TEST_SUMS = Sums(8.0, 4.0, {"mae": 2.0}), Sums(3.0, 2.0, {"mae": 1.0})

#: Answers that no device half gives, by phase.
FOREIGN: dict[str, Received] = {
    "train": Received({"other": THETA}, TRAIN_SUMS, {}, ROWS),
    "statistics": Received({}, Sums(0.0, 0.0, {}), {"x": (1.0,)}, ROWS),
}


@dataclass
class FakeDevice:
    """A device of four rows, whose gradient is 1 everywhere."""

    calls: list[str] = field(default_factory=list)
    state: ClassVar[dict[str, F32]] = {}
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def train(self, run: LocalRun, training: TrainingPlan) -> Trained:
        self.calls.append("train")
        gradient = run.direction(lambda theta, rows=None: np.ones_like(theta), run.start)
        theta = run.start - np.float32(training.learning_rate) * gradient
        return Trained(theta, Summary(1, training.learning_rate), TRAIN_SUMS, ROWS, 0.1)

    def loss(self, theta: F32) -> float:
        self.calls.append("loss")
        return 2.0

    def evaluate(self, theta: F32) -> Sums:
        self.calls.append("evaluate")
        assert theta.shape == THETA.shape
        return TEST_SUMS

    def columns(self) -> Columns:
        self.calls.append("columns")
        values = {"x": np.array([1.0, 2.0, 3.0, np.nan]), "y": np.ones((ROWS, 2))}
        return Columns(values, np.array([1.0, 0.0, 2.0, 1.0]))


def made(name: str) -> Phase:
    return PHASES.make(name)


def collector(name: str) -> Collector:
    sizes = {each: upload.size(THETA.size) for each, upload in ALGORITHM.uploads.items()}
    return made(name).collector(
        CollectorContext(ALGORITHM, lambda: AGGREGATORS.make("mean", sizes), "examples", sizes)
    )


def answered(name: str) -> Answer:
    return made(name).answer(Request({WEIGHTS: THETA}, ALGORITHM, PLAN), FakeDevice())


def received(answer: Answer) -> Received:
    """Returns an answer as it arrives: a report through JSON, vectors decoded."""
    sums = answer.sums or Sums(0.0, 0.0, {})
    report = Report(
        session="s",
        agent_instance="b",
        round_id=1,
        kind="result",
        phase="p",
        version=0,
        loss_sum=sums.loss,
        weight_sum=sums.weight,
        metric_sums=dict(sums.metrics),
        values=dict(answer.values),
        num_examples=answer.num_examples,
    )
    report = messages.decode(messages.encode(report), Report)
    sums = Sums(report.loss_sum, report.weight_sum, report.metric_sums)
    return Received(answer.vectors, sums, report.values, report.num_examples)


def held(collector: Any) -> dict[str, Any]:
    """Everything that a collector holds."""
    kept: dict[str, Any] = {
        name: dict(value) for name, value in vars(collector).items() if isinstance(value, dict)
    }
    if isinstance(collector, TrainCollector) and collector.sums:
        aggregate = collector.aggregate(1)
        kept["aggregate"] = {name: v.tolist() for name, v in aggregate.vectors.items()}
        kept["weight"] = aggregate.weight
    return kept


@every_phase
def test_the_name_alone_is_enough_and_is_what_travels(name: str) -> None:
    settings = PHASES.settings(name)
    assert settings.name == name
    assert choice_of(settings) == name
    assert PHASES.settings({"name": name}) == settings


@every_phase
def test_a_setting_that_the_phase_has_not_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.wombat: unknown key"):
        PHASES.settings({"name": name, "wombat": 1}, key="task")


def test_a_phase_that_nobody_knows_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="unknown phase 'trian'; did you mean train"):
        PHASES.settings("trian")


@every_phase
def test_the_settings_of_a_plan_come_back_from_json(name: str) -> None:
    settings = PHASES.settings(name)
    plan = messages.encode(
        messages.RoundPlan(
            session="s",
            coordinator_instance="c",
            round_id=1,
            state="open",
            phase=choice_of(settings),
            version=0,
            blobs={"weights": messages.BlobRef(sha256="0" * 64, size=1, chunks=1)},
            package="0" * 64,
            fingerprint="0" * 16,
            cohort=messages.Cohort(),
        )
    )
    decoded = messages.decode(plan, messages.RoundPlan)
    assert decoded.phase_name == name
    assert PHASES.settings(decoded.phase) == settings


@every_phase
def test_the_part_of_the_rows_that_it_needs_is_one_there_is(name: str) -> None:
    assert made(name).rows in ("train", "test", "any")


@every_phase
def test_a_device_answers_with_vectors_or_numbers_and_says_of_how_many_rows(name: str) -> None:
    answer = answered(name)
    assert answer.vectors or answer.sums or answer.values
    if answer.vectors:
        assert set(answer.vectors) == set(ALGORITHM.uploads)
        assert answer.commit is not None
    if answer.vectors or answer.values:
        assert answer.num_examples == ROWS


@every_phase
def test_a_device_s_answer_leaves_theta_alone(name: str) -> None:
    theta = THETA.copy()
    theta.setflags(write=False)
    made(name).answer(Request({WEIGHTS: theta}, ALGORITHM, PLAN), FakeDevice())
    assert np.array_equal(theta, THETA)


@every_phase
def test_the_same_device_answers_the_same(name: str) -> None:
    assert repr(received(answered(name))) == repr(received(answered(name)))


@every_phase
def test_the_coordinator_s_half_takes_what_the_device_s_half_gives(name: str) -> None:
    taker = collector(name)
    before = held(taker)
    taker.accept("pi-1", received(answered(name)))
    one = held(taker)
    assert one != before
    taker.accept("pi-2", received(answered(name)))
    assert taker.capacity is None


@every_phase
def test_the_order_of_answers_does_not_matter(name: str) -> None:
    one, other = collector(name), collector(name)
    for taker, order in ((one, ("a", "b")), (other, ("b", "a"))):
        for agent_id in order:
            taker.accept(agent_id, received(answered(name)))
    assert held(one) == held(other)


@every_phase
def test_a_foreign_answer_is_refused_and_changes_nothing(name: str) -> None:
    if name not in FOREIGN:
        assert not answered(name).vectors, "sums alone: the intake checks them"
        assert not answered(name).values
        return
    taker = collector(name)
    taker.accept("pi-1", received(answered(name)))
    before = held(taker)
    with pytest.raises(UpdateRejected) as caught:
        taker.accept("pi-2", FOREIGN[name])
    assert caught.value.agent_id == "pi-2"
    assert held(taker) == before


@every_phase
def test_the_device_is_asked_for_no_more_than_the_phase_needs(name: str) -> None:
    device = FakeDevice()
    made(name).answer(Request({WEIGHTS: THETA}, ALGORITHM, PLAN), device)
    needed = {"train": ["train"], "evaluate": ["evaluate"], "statistics": ["columns"]}
    assert device.calls == needed.get(name, device.calls[:1])  # from elsewhere: one thing, once
