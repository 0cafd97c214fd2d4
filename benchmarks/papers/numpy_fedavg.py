"""FedAvg on the 2NN in plain numpy, written from the paper, with nothing of fedge in it.

McMahan et al. 2017, arXiv 1602.05629, Algorithm 1. It shares with `mcmahan_2nn.py` the rows and,
where asked, the initial weights; partition, cohorts and order of rows it draws by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Layers = list[F32]  # kernel, bias, kernel, bias, kernel, bias
SHAPES = ((784, 200), (200, 200), (200, 10))


def uniform(limit: Callable[[int, int], float]) -> Callable[[np.random.Generator], Layers]:
    """Returns a drawer of uniform kernels within ±limit(inputs, outputs), and zero biases."""

    def draw(rng: np.random.Generator) -> Layers:
        layers: Layers = []
        for shape in SHAPES:
            side = limit(*shape)
            layers += [rng.uniform(-side, side, shape).astype(np.float32)]
            layers += [np.zeros(shape[1], np.float32)]
        return layers

    return draw


def normal(deviation: float, bias: float = 0.0) -> Callable[[np.random.Generator], Layers]:
    """Returns a drawer of normal kernels, cut at two deviations, and constant biases."""

    def draw(rng: np.random.Generator) -> Layers:
        layers: Layers = []
        for shape in SHAPES:
            kernel = rng.standard_normal(shape)
            while (far := np.abs(kernel) > 2).any():
                kernel[far] = rng.standard_normal(far.sum())
            layers += [(deviation * kernel).astype(np.float32)]
            layers += [np.full(shape[1], bias, np.float32)]
        return layers

    return draw


#: How a network of 2016 may have begun; "glorot" is Keras's default, with which fedge's runs begin.
INITIAL = {
    "glorot": uniform(lambda a, b: float(np.sqrt(6 / (a + b)))),
    "fan_in": uniform(lambda a, _: float(1 / np.sqrt(a))),
    "normal .1, biases .1": normal(0.1, 0.1),
    "normal .03": normal(0.03),
    "normal .01": normal(0.01),
}


def fedavg(
    initial: Layers,
    train: tuple[F32, NDArray[np.int64]],
    test: tuple[F32, NDArray[np.int64]],
    clients: Sequence[NDArray[np.int64]],
    rate: float,
    rng: np.random.Generator,
) -> Iterator[float]:
    """Yields the accuracy on the test rows after each round: C = 0.1, E = 1, B = 10.

    Args:
        initial: weights before the first round.
        train, test: pixels from 0 to 1, shape (n, 784), and digits.
        clients: rows of each client.
        rate: learning rate of the clients.
        rng: draws cohorts and orders of rows.
    """
    x, y = train
    theta = [layer.copy() for layer in initial]
    while True:
        cohort = rng.choice(len(clients), len(clients) // 10, replace=False)
        total = [np.zeros(layer.shape) for layer in theta]
        for client in cohort:
            rows = rng.permutation(clients[client])
            local = [layer.copy() for layer in theta]
            for start in range(0, len(rows), 10):
                batch = rows[start : start + 10]
                _step(local, x[batch], y[batch], rate)
            for summed, layer in zip(total, local, strict=True):
                summed += layer  # clients have equally many rows
        theta = [(summed / len(cohort)).astype(np.float32) for summed in total]
        yield float((_forward(theta, test[0])[-1].argmax(1) == test[1]).mean())


def _forward(theta: Layers, x: F32) -> list[F32]:
    hidden_1 = np.maximum(x @ theta[0] + theta[1], 0)
    hidden_2 = np.maximum(hidden_1 @ theta[2] + theta[3], 0)
    return [x, hidden_1, hidden_2, hidden_2 @ theta[4] + theta[5]]


def _step(theta: Layers, x: F32, y: NDArray[np.int64], rate: float) -> None:
    *inputs, scores = _forward(theta, x)
    error = np.exp(scores - scores.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error *= np.float32(rate / len(y))
    for layer in (4, 2, 0):
        below = inputs.pop()
        kernel = theta[layer]
        slope = error @ kernel.T
        theta[layer] = kernel - below.T @ error
        theta[layer + 1] = theta[layer + 1] - error.sum(0)
        error = slope * (below > 0)
