"""Rounds of FedAvg to 97 % with the 2NN: McMahan et al. 2017, arXiv 1602.05629, E = 1, B = 10."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from numpy_fedavg import INITIAL, SHAPES, Layers, fedavg
from paper_models import package
from paper_runs import (
    SCRATCH,
    Document,
    mnist,
    option_parser,
    picture,
    rounds_row,
    save,
    simulate,
)

from fleet.experiments.curves import Curve
from models.package.initial_weights import draw_weights
from models.package.package import load_package

TARGET = 0.97
SEEDS = 5
#: Label, changes, rates, most rounds, the paper's rounds.
ROWS: list[tuple[str, dict[str, str], list[float], int, float]] = [
    ("IID", {}, [0.05, 0.1, 0.2], 130, 87.0),
    ("2 shards", {"partition.kind": "shards"}, [0.1], 400, 664.0),
]
#: What the plain script repeats: partition, initial weights, rate, most rounds.
PLAIN = [
    ("IID", "fedge's", 0.1, 130),
    ("2 shards", "fedge's", 0.1, 320),
    ("IID", "normal .01", 0.1, 130),
    ("IID", "normal .01", 0.05, 200),
]


def main() -> None:
    """Runs what is not there yet, and writes result and picture."""
    parser = option_parser(__doc__, "mnist_writers.npz")
    options, began = parser.parse_args(), time.time()
    data = mnist(options.data, SCRATCH / "mnist")
    rows = []
    for label, changes, rates, most, paper in ROWS:
        for rate in rates:
            reports = {
                seed: simulate(
                    "mcmahan_2nn.yaml",
                    {
                        **data,
                        **changes,
                        "model": str(package("2nn")),
                        "training.learning_rate": rate,
                        "seed": seed,
                        "rounds": most,
                    },
                    SCRATCH / f"2nn-{label.replace(' ', '')}-{rate}-{seed}",
                )
                for seed in range(options.seeds or SEEDS)
            }
            row = rounds_row(f"{label}, rate {rate}", reports, TARGET, paper)
            rows.append(row | {"partition": label, "rate": rate})
    document = {"data": "mnist_writers.npz", "rows": rows, "plain_numpy": list(_plain())}
    save("mcmahan_2nn", document, reports[0], began)
    _draw(document)


def _plain() -> Iterator[Document]:
    """Repeats rows with the plain script, from fedge's weights of seed 0 and from others."""
    for entry in PLAIN:
        kept = SCRATCH / f"plain-{'-'.join(map(str, entry))}.json".replace(" ", "")
        if not kept.exists():
            kept.write_text(json.dumps(_repeat(*entry)))
        yield json.loads(kept.read_text())


def _repeat(partition: str, weights: str, rate: float, most: int) -> Document:
    with np.load(SCRATCH / "mnist" / "train.npz") as file:
        train, y = _pixels(file["x"]), file["y"].astype(np.int64)
    with np.load(SCRATCH / "mnist" / "central.npz") as file:
        test = (_pixels(file["image"]), file["target"].astype(np.int64))
    rng = np.random.default_rng(100)
    initial = _fedge_weights() if weights == "fedge's" else INITIAL[weights](rng)
    clients = np.split(rng.permutation(len(y)), 100)
    if partition != "IID":
        shards = np.split(np.argsort(y, kind="stable"), 200)
        pairs = rng.permutation(200).reshape(100, 2)
        clients = [np.concatenate([shards[one], shards[other]]) for one, other in pairs]
    curve: list[float] = []
    for accuracy in islice(fedavg(initial, (train, y), test, clients, rate, rng), most):
        curve.append(round(accuracy, 4))
        if accuracy >= TARGET:
            break
    crossing = _curve(curve).crossing(TARGET)
    print(f"plain numpy, {partition}, {weights}, rate {rate}: {len(curve)} rounds", flush=True)
    return {
        "partition": partition,
        "initial": weights,
        "rate": rate,
        "rounds": None if crossing is None else round(crossing.rounds, 1),
        "curve": curve,
    }


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(-1, 784).astype(np.float32) / 255


def _curve(values: list[float]) -> Curve:
    nothing = np.zeros(len(values))
    rounds = np.arange(1.0, len(values) + 1)
    return Curve("accuracy", False, rounds, np.array(values), nothing, nothing, nothing)


def _fedge_weights() -> Layers:
    theta = draw_weights(load_package(package("2nn")), 0).package.initial
    sizes = [size for shape in SHAPES for size in (shape[0] * shape[1], shape[1])]
    parts = np.split(theta, np.cumsum(sizes)[:-1])
    return [
        part.reshape(SHAPES[n // 2]) if n % 2 == 0 else part.copy() for n, part in enumerate(parts)
    ]


def _draw(document: Document) -> None:
    panels = []
    for partition, _, _, _, paper in ROWS:
        lines = {
            f"fedge, rate {row['rate']}": list(row["curves"].values())
            for row in document["rows"]
            if row["partition"] == partition
        }
        for plain in document["plain_numpy"]:
            if plain["partition"] == partition:
                label = f"plain numpy, {plain['initial']} weights, rate {plain['rate']}"
                lines[label] = [plain["curve"]]
        panels.append(
            {
                "title": f"2NN, {partition}, 100 clients, C = 0.1, E = 1, B = 10",
                "lines": lines,
                "target": TARGET,
                "papers": {f"the paper: {paper:.0f} rounds": paper},
                "low": 0.85,
            }
        )
    picture("mcmahan_2nn", panels)


if __name__ == "__main__":
    main()
