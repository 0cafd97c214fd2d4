"""Algorithms in the middle of a federation, for the suite that each of them must pass."""

from __future__ import annotations

import re

import numpy as np
import pytest

from learning.algorithms.algorithm import (
    Aggregate,
    Algorithm,
    LocalContext,
    LocalRun,
    ServerState,
)
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.server_step import server_step
from learning.algorithms.training import TrainingPlan
from learning.registry import Choice
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors, read_only
from tests.unit.learning.rounds import Quadratic, local_context, one_tensor, summary_of, trained

PLAN = TrainingPlan(max_steps=4, learning_rate=0.05)
P, N = 6, 3

#: Beside the defaults, settings that take another way through the code.
CHOICES: list[Choice] = [
    *ALGORITHMS,
    {"name": "fedprox", "mu": 0.5, "server": "fedadam"},
]

every_algorithm = pytest.mark.parametrize("choice", CHOICES, ids=str)


def make(choice: Choice) -> Algorithm:
    return ALGORITHMS.make(choice, PLAN)


def rng() -> np.random.Generator:
    return np.random.default_rng(12)


def normal(*shape: int, scale: float = 1.0) -> F32:
    return rng().normal(0, scale, shape).astype(np.float32)


def aggregate(algorithm: Algorithm, size: int, factor: float) -> Aggregate:
    """Returns an aggregate of five updates in a federation of eight."""
    vectors = {}
    for name, upload in algorithm.uploads.items():
        values = normal(upload.size(size))
        # Of the model's length: changes of θ or of gradients. Others count something.
        vectors[name] = np.abs(values) + np.float32(1) if upload.length else factor * values
    return Aggregate(read_only(vectors), weight=50, count=5, population=8)


def stepped(algorithm: Algorithm, theta: F32, rounds: int) -> tuple[F32, ServerState]:
    """θ and the server's state after some rounds of unlike updates."""
    state = algorithm.init(theta)
    for number in range(1, rounds + 1):
        found = aggregate(algorithm, theta.size, factor=number)
        theta, state = server_step(algorithm, one_tensor(theta.size), theta, state, found)
    return theta, state


def cohort_loss() -> Quadratic:
    """Returns the targets of N devices that want different things."""
    return Quadratic(normal(N, P) ** 2 + np.float32(1), normal(N, P, scale=3))


def device_loss(index: int) -> Quadratic:
    loss = cohort_loss()
    return Quadratic(loss.curvature[index], loss.minimum[index])


def context_of(algorithm: Algorithm, index: int, state: Vectors) -> LocalContext:
    """One device in the third round."""
    theta, server = stepped(algorithm, normal(P), rounds=2)
    loss = device_loss(index).loss
    return local_context(PLAN, theta, algorithm.shared(server), state, loss)


def trained_once(algorithm: Algorithm, index: int, state: Vectors) -> tuple[LocalRun, Vectors]:
    run = algorithm.local(context_of(algorithm, index, state))
    theta = trained(run, device_loss(index).gradient, PLAN)
    return run, run.finish(theta, summary_of(PLAN))


def device_state(algorithm: Algorithm, index: int) -> Vectors:
    """Returns the state of one device after its first round."""
    run, uploads = trained_once(algorithm, index, {})
    return run.commit(uploads)


def copies(vectors: Vectors) -> dict[str, F32]:
    return {name: values.copy() for name, values in vectors.items()}


def assert_same(found: Vectors, expected: Vectors) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name


def assert_plain(vectors: Vectors) -> None:
    for name, values in vectors.items():
        assert re.fullmatch("[a-z][a-z0-9_]{0,63}", name)
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name


def cohort_of(algorithm: Algorithm) -> tuple[LocalContext, list[Vectors]]:
    """N devices in their second training as one context, and their states one by one."""
    states = [device_state(algorithm, index) for index in range(N)]
    stacked = {name: np.stack([state[name] for state in states]) for name in states[0]}
    one = context_of(algorithm, 0, {})
    theta = np.broadcast_to(one.theta, (N, P))
    return local_context(PLAN, theta, one.shared, stacked, cohort_loss().loss), states


def broadcast(values: F32) -> F32:
    """Returns starts of shape [n, P], also where one start serves the whole cohort."""
    return np.broadcast_to(values, (N, values.shape[-1]))
