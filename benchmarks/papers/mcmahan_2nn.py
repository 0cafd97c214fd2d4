"""Rounds of FedAvg to 97 % with the 2NN: McMahan et al. 2017, arXiv 1602.05629, E = 1."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from fleet.experiments.results import Report
from models.package.initial_weights import draw_weights
from models.package.package import load_package

TARGET = 0.97
SEEDS = 5


@dataclass(frozen=True)
class Row:
    """Runs that are held against a figure of the paper.

    Attributes:
        partition: "IID" or "2 shards".
        fraction: of the clients that a round asks (C).
        batch: rows of a step (B); 0: all.
        rates: learning rates.
        most: rounds that are run without reaching the target.
        paper: rounds of the paper.
        seeds: of each rate, unless others are asked for.
    """

    partition: str
    fraction: float
    batch: int
    rates: Sequence[float]
    most: int
    paper: float
    seeds: int = SEEDS

    @property
    def label(self) -> str:
        """Name that tells it from other rows."""
        return f"{self.partition}, C = {self.fraction}, B = {self.batch or 'all'}"


ROWS = [
    Row("IID", 0.1, 10, (0.05, 0.1, 0.2), 130, 87.0),
    Row("2 shards", 0.1, 10, (0.1,), 400, 664.0),
    Row("IID", 1.0, 10, (0.2,), 130, 70.0),
    Row("2 shards", 1.0, 10, (0.1,), 400, 380.0, seeds=1),
    Row("IID", 0.1, 0, (0.5,), 1600, 1474.0),
    Row("2 shards", 0.1, 0, (0.2,), 1800, 1796.0, seeds=1),
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
    for row in ROWS:
        for rate in row.rates:
            seeds = range(options.seeds or row.seeds)
            reports = {seed: _run(row, rate, seed, data) for seed in seeds}
            found = rounds_row(f"{row.label}, rate {rate}", reports, TARGET, row.paper)
            rows.append(found | {"of": row.label, "rate": rate})
    document = {"data": "mnist_writers.npz", "rows": rows, "plain_numpy": list(_plain())}
    save("mcmahan_2nn", document, reports[0], began)
    _draw(document)


def _run(row: Row, rate: float, seed: int, data: Mapping[str, str]) -> Report:
    changes = {
        **data,
        **({} if row.partition == "IID" else {"partition.kind": "shards"}),
        "model": str(package("2nn")),
        "training.learning_rate": rate,
        "seed": seed,
        "rounds": row.most,
    }
    name = f"2nn-{row.partition.replace(' ', '')}-{rate}-{seed}"
    if (row.fraction, row.batch) != (0.1, 10):  # the scenario's
        changes |= {"cohort.fraction": row.fraction, "training.batch_size": row.batch}
        name += f"-C{row.fraction}-B{row.batch}"
    return simulate("mcmahan_2nn.yaml", changes, SCRATCH / name)


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
    for row in ROWS:
        lines = {
            f"fedge, rate {found['rate']}": list(found["curves"].values())
            for found in document["rows"]
            if found["of"] == row.label
        }
        for plain in document["plain_numpy"] if (row.fraction, row.batch) == (0.1, 10) else ():
            if plain["partition"] == row.partition:
                label = f"plain numpy, {plain['initial']} weights, rate {plain['rate']}"
                lines[label] = [plain["curve"]]
        panels.append(
            {
                "title": f"2NN, E = 1, {row.label}",
                "lines": lines,
                "target": TARGET,
                "papers": {f"the paper: {row.paper:.0f} rounds": row.paper},
                "low": 0.85,
            }
        )
    picture("mcmahan_2nn", panels)


if __name__ == "__main__":
    main()
