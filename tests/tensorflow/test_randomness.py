"""Random layers: distribution of their numbers, and dependence on the seed."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.training.trainer import train
from learning.algorithms.training import TrainingPlan
from models.export.backend import keras, tf
from models.export.exporter import export_model
from models.export.layers.randomness import Noise
from models.export.random_rows import random_batch
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.program import Program

layers = keras.layers
SHAPE = (40, 30, 20)


def noise(seed: int) -> Noise:
    return Noise(tf.constant(seed))


def package(*middle: object) -> ModelPackage:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16), *middle, layers.Dense(1)])
    model.compile(loss="mse")
    return export_model(model, name="m", batch_size=8)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_drops_the_given_share(rate: float) -> None:
    kept = noise(3).keep(SHAPE, rate).numpy()
    assert set(np.unique(kept)) <= {0.0, 1.0}
    deviation = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(1 - kept.mean() - rate) <= 4 * deviation
    for axis in range(3):  # nor does any row or column get more than its share
        means = kept.mean(tuple(other for other in range(3) if other != axis))
        expected = deviation * SHAPE[axis] ** 0.5
        assert np.abs(1 - means - rate).max() <= 5 * expected


def test_every_bit_is_uniform() -> None:
    bits = np.unpackbits(noise(5).bits(SHAPE).numpy().view(np.uint8).reshape(-1, 4), axis=1)
    assert np.abs(bits.mean(0) - 0.5).max() <= 5 * 0.5 / len(bits) ** 0.5
    assert np.abs(np.corrcoef(bits.T) - np.eye(32)).max() <= 5 / len(bits) ** 0.5


def test_normal_numbers_have_the_normal_distribution() -> None:
    drawn = np.sort(noise(7).normal(SHAPE).numpy().ravel())
    n = len(drawn)
    assert abs(drawn.mean()) <= 4 / n**0.5
    assert abs(drawn.var() - 1) <= 4 * (2 / n) ** 0.5
    assert abs((drawn**4).mean() - 3) <= 4 * (96 / n) ** 0.5
    for limit, share in ((-2.0, 0.02275), (-1.0, 0.15866), (0.0, 0.5), (1.0, 0.84134)):
        assert np.searchsorted(drawn, limit) / n == pytest.approx(share, abs=0.01)


def test_neighbours_calls_and_seeds_are_independent() -> None:
    source = noise(9)
    first, second = (source.bits(SHAPE).numpy().astype(np.float64) for _ in range(2))
    others = [noise(seed).bits(SHAPE).numpy().astype(np.float64) for seed in (10, 8, -9)]
    shifted = [np.roll(first, 1, axis) for axis in range(3)]
    for other in (second, *others, *shifted):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) <= 5 / first.size**0.5


def test_a_seed_decides_the_gradient() -> None:
    made = package(layers.Dropout(0.5))
    assert made.spec.stochastic is True
    assert ModelSpec.from_json(made.spec.to_json()) == made.spec
    program = Program(made.program, made.spec)
    rows = random_batch(made.spec, np.random.default_rng(2))

    def gradient(seed: int) -> bytes:
        return program.gradient(made.initial, rows, seed=seed).vector.tobytes()

    assert gradient(1) == gradient(1) == gradient(1 + 2**32)
    assert len({gradient(seed) for seed in (0, 1, 2, -1, 2**31)}) == 5


def test_batches_of_one_call_use_different_random_numbers() -> None:
    made = package(layers.GaussianNoise(1.0))
    program = Program(made.program, made.spec)
    rows = random_batch(made.spec, np.random.default_rng(2))
    twice = {name: np.concatenate([array, array]) for name, array in rows.items()}
    both = program.gradient(made.initial, twice, seed=4)
    parts = [program.gradient(made.initial, rows, seed=seed) for seed in (4, 5)]
    assert not np.allclose(parts[0].vector, parts[1].vector)
    mean = (parts[0].vector + parts[1].vector) / 2
    assert both.vector == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_evaluation_and_prediction_are_not_random() -> None:
    noisy, plain = package(layers.Dropout(0.5), layers.GaussianNoise(1.0)), package()
    rows = random_batch(plain.spec, np.random.default_rng(2))
    programs = [Program(made.program, made.spec) for made in (noisy, plain)]
    first, second = (p.evaluate(plain.initial, rows) for p in programs)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    left, right = (p.predict(plain.initial, rows)["prediction"] for p in programs)
    assert left == pytest.approx(right, abs=1e-6)


def test_a_layer_that_drops_nothing_is_not_random() -> None:
    made = package(layers.Dropout(0.0), layers.GaussianNoise(0.0))
    assert not made.spec.stochastic


def test_training_is_repeatable_with_a_new_seed_per_step() -> None:
    made = package(layers.Dropout(0.5))
    program = Program(made.program, made.spec)
    rows = random_batch(made.spec, np.random.default_rng(2))
    plan = TrainingPlan(epochs=3, batch_size=0, learning_rate=0.01)
    deltas = [
        train(program, made.initial, rows, plan, np.random.default_rng(seed)).delta
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(deltas[0], deltas[1])
    assert not np.array_equal(deltas[0], deltas[2])
