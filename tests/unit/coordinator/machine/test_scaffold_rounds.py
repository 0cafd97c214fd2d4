"""SCAFFOLD through the coordinator: control variates down, two vectors up, c in the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.config import CohortConfig, StartConfig
from coordinator.storage.durability import Durability
from coordinator.storage.store import Store
from fedge.errors import ConfigError
from learning.algorithms.algorithm import LocalContext, LocalRun, Summary
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.vector.parameters import F32
from tests.unit.coordinator.machine.coordinator_stage import (
    PACKAGE,
    FakeAgent,
    Stage,
    config,
    three,
)

RATE = 0.125
TRAINING = TrainingPlan(learning_rate=RATE, epochs=1, batch_size=0)
#: Each device minimises |θ - target|² / 2: its gradient is θ - target.
TARGETS = {"a": [1.0, 0.0, 4.0], "b": [3.0, -2.0, 0.0], "c": [-1.0, 8.0, 2.0]}


def local_run(stage: Stage, name: str, states: dict[str, dict[str, F32]]) -> tuple[LocalRun, F32]:
    algorithm = ALGORITHMS.make("scaffold", TRAINING)
    theta = np.array(stage.weights())
    context = LocalContext(
        theta,
        {"control": stage.blob("control")},
        states.get(name, {}),
        TRAINING,
        np.random.default_rng(0),
        lambda _: 0.0,
    )
    run = algorithm.local(context)
    target = np.array(TARGETS[name], np.float32)
    after = theta - np.float32(RATE) * run.direction(lambda at, rows=None: at - target, theta)
    return run, after


def play_round(
    stage: Stage, agents: dict[str, FakeAgent], states: dict[str, dict[str, F32]]
) -> None:
    for name, agent in agents.items():
        run, after = local_run(stage, name, states)
        vectors = run.finish(after, Summary(steps=1, rate_sum=RATE))
        agent.update(vectors["delta"].tolist(), more={"control": vectors["control"].tolist()})
        states[name] = dict(run.commit(vectors))


def test_one_step_of_all_agents_is_gradient_descent_round_after_round() -> None:
    stage, a, b, c = three(algorithm="scaffold", training=TRAINING, weighting="agents")
    agents, states = {"a": a, "b": b, "c": c}, dict[str, dict[str, F32]]()
    theta = np.zeros(3)
    mean = np.mean(list(TARGETS.values()), axis=0)
    for _ in range(5):
        play_round(stage, agents, states)
        theta = theta - RATE * (theta - mean)
        assert stage.coordinator.progress.theta == pytest.approx(theta, abs=1e-6)
        control = stage.coordinator.progress.state.vectors["control"]
        own = np.mean([states[name]["control"] for name in TARGETS], axis=0)
        assert control == pytest.approx(own, abs=1e-6)


def test_the_control_variate_survives_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    settings = config(
        start=StartConfig(agents=3), algorithm="scaffold", training=TRAINING, weighting="agents"
    )
    stage = Stage(settings)
    store.begin(PACKAGE.initial, stage.coordinator.progress.state)
    agents = {name: FakeAgent(stage, name) for name in TARGETS}
    play_round(stage, agents, {})
    durability = Durability(store)
    for action in stage.actions:
        durability.perform(action)
    durability.flush()
    control = stage.coordinator.progress.state.vectors["control"]
    assert control.any()
    again = Stage(settings, progress=store.load(PACKAGE.spec.size))
    for name in TARGETS:
        FakeAgent(again, name)
    assert again.blob("control").tolist() == control.tolist()
    store.close()


def test_an_update_without_its_control_variate_is_refused() -> None:
    _, a, _, _ = three(algorithm="scaffold", training=TRAINING)
    receipt = a.receipt(a.update([1, 0, 0]))
    assert (receipt.accepted, receipt.reason) == (False, "vectors")


def test_momentum_is_refused_when_the_coordinator_starts() -> None:
    with pytest.raises(ConfigError, match=r"needs training\.optimizer sgd with momentum 0"):
        Stage(config(algorithm="scaffold", training=TrainingPlan(momentum=0.9)))


def test_agents_that_do_not_know_the_algorithm_are_not_asked() -> None:
    stage = Stage(config(start=StartConfig(agents=1), algorithm="fedyogi"))
    FakeAgent(stage, "a")  # its status names fedavg, fedavgm, fedadam and scaffold
    assert "fedge/v1/f/round" not in stage.retained


@pytest.mark.parametrize("aggregator", ["median", "trimmed_mean"])
def test_an_aggregator_that_leaves_values_out_is_refused(aggregator: str) -> None:
    with pytest.raises(ConfigError, match=rf"^aggregator: {aggregator} leaves values out"):
        Stage(config(algorithm="scaffold", training=TRAINING, aggregator=aggregator))


def test_a_control_variate_far_beyond_the_norm_limit_is_refused() -> None:
    _, a, b, _ = three(algorithm="scaffold", training=TRAINING, max_update_norm=1.0)
    far = a.receipt(a.update([0, 0, 0], more={"control": [3.3e38, 0, 0]}))
    assert (far.accepted, far.reason) == (False, "norm")
    # One step of rate 1/8 and |Δy| = 1 from c = 0 makes |Δc| = 8; the limit is twice that.
    assert b.receipt(b.update([1, 0, 0], more={"control": [-8, 0, 0]})).accepted


def test_an_agent_that_starts_again_before_its_update_counts_is_one_of_the_population() -> None:
    stage, a, b, c = three(algorithm="scaffold", training=TRAINING)
    for agent in (a, b):
        agent.update([0, 0, 0], more={"control": [3, 0, 0]})
    frame = c.frame([0, 0, 0], more={"control": [3, 0, 0]})
    c.rows = 0  # until its model is loaded again
    c.status("online", "b2")
    assert c.receipt(c.send(frame, stage.plan.round_id)).accepted
    assert stage.record.population == 3
    assert stage.coordinator.progress.state.vectors["control"].tolist() == [3.0, 0.0, 0.0]


def test_a_stale_control_variate_counts_in_full() -> None:
    settings = config(
        start=StartConfig(agents=3),
        algorithm="scaffold",
        training=TRAINING,
        max_staleness=1,
        cohort=CohortConfig(fraction=1.0),
    )
    stage = Stage(settings)
    agents = {name: FakeAgent(stage, name) for name in TARGETS}
    plan = stage.plan
    for name in "ab":
        agents[name].update([0, 0, 0], more={"control": [1, 0, 0]})
    stage.later(60.0)
    agents["c"].update([0, 0, 0], more={"control": [6, 0, 0]}, plan=plan)
    for agent in agents.values():
        agent.update([0, 0, 0], more={"control": [1, 0, 0]})
    # c_i by now: 2, 2 and 7
    control = stage.coordinator.progress.state.vectors["control"]
    assert control == pytest.approx([11 / 3, 0, 0], rel=1e-6)
