"""Collector of training: cohorts and parts of them give what single updates give."""

from __future__ import annotations

import numpy as np
import pytest

from learning.aggregation.aggregator import Aggregator
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Algorithm, Weighting
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.phases.phase import CollectorContext, Received, ReceivedMany
from learning.phases.train import TrainCollector
from learning.vector.metrics import Sums
from learning.vector.sums_table import SumsTable

PARAMETERS = 6


def context(algorithm: str, aggregator: str, weighting: Weighting) -> CollectorContext:
    made: Algorithm = ALGORITHMS.make(algorithm, TrainingPlan())
    sizes = {name: upload.size(PARAMETERS) for name, upload in made.uploads.items()}

    def empty() -> Aggregator:
        found: Aggregator = AGGREGATORS.make(aggregator, sizes)
        return found

    return CollectorContext(made, empty, weighting, sizes)


def answers(names: list[str], vectors: list[str], seed: int) -> dict[str, Received]:
    rng = np.random.default_rng(seed)
    return {
        name: Received(
            {v: rng.normal(size=PARAMETERS).astype(np.float32) for v in vectors},
            Sums(float(rng.random()), 2.0, {"accuracy": float(rng.random())}),
            {},
            int(rng.choice([3, 5, 400])),
            length=float(rng.uniform(0.5, 2.0)),
        )
        for name in names
    }


def as_cohort(received: dict[str, Received]) -> ReceivedMany:
    each = list(received.values())
    return ReceivedMany(
        {v: np.stack([one.vectors[v] for one in each]) for v in each[0].vectors},
        SumsTable.of({name: one.sums for name, one in received.items()}),
        np.array([one.num_examples for one in each]),
        np.array([one.length for one in each]),
    )


@pytest.mark.parametrize("weighting", ["examples", "agents"])
@pytest.mark.parametrize(
    ("algorithm", "aggregator"),
    [("fedavg", "mean"), ("scaffold", "mean"), ("fedadam", "median"), ("fedprox", "trimmed_mean")],
)
def test_cohorts_and_parts_give_what_single_updates_give(
    algorithm: str, aggregator: str, weighting: Weighting
) -> None:
    made = context(algorithm, aggregator, weighting)
    received = answers([f"pi-{n}" for n in range(11)], list(made.sizes), seed=4)
    one_by_one = TrainCollector(made)
    for name, each in received.items():
        one_by_one.accept(name, each)

    parts = [TrainCollector(made), TrainCollector(made)]
    names = list(received)
    for part, start, end in ((0, 0, 4), (0, 4, 5), (1, 5, 11)):
        parts[part].accept_many(as_cohort({n: received[n] for n in names[start:end]}))
    parts[0].merge(parts[1])

    found, expected = parts[0].aggregate(3), one_by_one.aggregate(3)
    for name, vector in expected.vectors.items():
        np.testing.assert_allclose(found.vectors[name], vector, rtol=2e-6, atol=1e-7)
    assert found.weight == pytest.approx(expected.weight)
    assert (found.count, found.population) == (11, 11)
    assert dict(parts[0].sums) == dict(one_by_one.sums)
