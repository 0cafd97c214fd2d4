"""The work that all peers do: the same rows, order of rows and weights, and where it must end.

A client has 16 digits (8 x 8, means of 3 x 3 pixels of `mnist_writers_small.npz`) and takes one
epoch in batches of 8, so two SGD steps, in every round. The order of its rows is the one that fedge
draws: fedge is told nothing, the others are given it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE / "tasks"), str(ROOT)]

from measured import Work, read_work  # noqa: E402
from mlp import FEATURES, SIZE, join, one_hot, sgd_step, split  # noqa: E402

from broker.protocol.seeds import stream  # noqa: E402

DATA = ROOT / "examples" / "data" / "mnist_writers_small.npz"
MODEL = HERE.parent / "mlp_2410"
ROWS, BATCH, RATE = 16, 8, 0.1
#: Name of the federation, and prefix of the agents' ids.
FEDERATION, PREFIX = "peers", "agent"
SEED = 0
#: Largest distance between two peers' θ, as a part of the length that θ has gone.
TOLERANCE = 1e-4


def digits(rows: int) -> tuple[Any, Any]:
    """Inputs [rows, 64] in [0, 1] and labels, in an order of our own."""
    with np.load(DATA) as file:
        images, labels = file["x"], file["y"]
    chosen = np.random.default_rng(8).permutation(len(labels))[:rows]
    if len(chosen) < rows:
        raise SystemExit(f"error: {rows:,} rows wanted, {DATA.name} has {len(labels):,}")
    inner = images[chosen, 2:26, 2:26].astype(np.float32) / 255
    pooled = inner.reshape(rows, 8, 3, 8, 3).mean((2, 4))
    return pooled.reshape(rows, FEATURES), labels[chosen].astype(np.int32)


def round_seed(round_id: int) -> int:
    """The seed in a round's plan; see `coordinator.rounds.plans`."""
    return int(np.random.default_rng([SEED, round_id, 1]).integers(1 << 53))


def write_work(path: Path, clients: int, rounds: int) -> Work:
    """Makes the work, keeps it in a file for all environments, and returns it."""
    x, y = digits(clients * ROWS)
    orders = [
        [
            stream(round_seed(n), f"{PREFIX}-{client}", 0).permutation(ROWS)
            for client in range(clients)
        ]
        for n in range(1, rounds + 1)
    ]
    theta = np.load(MODEL / "initial.npy").astype(np.float32)
    if theta.shape != (SIZE,):
        raise SystemExit(f"error: {MODEL.name} has θ of shape {theta.shape}, not ({SIZE},)")
    np.savez(
        path,
        x=x.reshape(clients, ROWS, FEATURES),
        y=y.reshape(clients, ROWS),
        orders=np.array(orders, np.int64),
        theta=theta,
        batch=BATCH,
        rate=RATE,
    )
    return read_work(path)


def reference(work: Work) -> Any:
    """θ after the last round in double precision."""
    labels = one_hot(work.y, np.float64)
    theta = work.theta.astype(np.float64)
    inputs = work.x.astype(np.float64)
    for orders in work.orders:
        trained = []
        for client, order in enumerate(orders):
            parts = split(theta.copy())
            for start in range(0, len(order), work.batch):
                rows = order[start : start + work.batch]
                sgd_step(parts, inputs[client][rows], labels[client][rows], work.rate)
            trained.append(join(parts))
        theta = np.mean(trained, 0)
    return theta


def distance(work: Work, expected: Any, found: Any) -> float:
    """Distance of θ from where it must be, as a part of the length that it should have gone."""
    gone = np.linalg.norm(expected - work.theta)
    return float(np.linalg.norm(found - expected) / gone)


def write_scenario(folder: Path, work: Work) -> Path:
    """The same work as a scenario of fedge; YAML takes JSON."""
    rows = work.x.shape[1]
    np.savez(
        folder / "rows.npz",
        x=work.x.reshape(-1, FEATURES),
        y=work.y.reshape(-1),
        client=np.repeat(np.arange(work.clients), rows),
    )
    scenario = {
        "name": FEDERATION,
        "description": "the work of benchmarks/peers",
        "licence": "as mnist_writers_small.npz",
        "data": {
            "path": "rows.npz",
            "inputs": {"pixels": {"array": "x"}},
            "target": {"array": "y"},
            "test_fraction": 0,
        },
        "partition": {"kind": "client", "prefix": PREFIX},
        "seeds": {"training": SEED},
        "federation": {
            "model": str(MODEL),
            "rounds": work.rounds,
            "training": {"epochs": 1, "batch_size": work.batch, "learning_rate": work.rate},
            "codec": "float32",
            "evaluation": {"every": 0},
            # Means of what all send, unchanged: what the others do.
            "norm_bound": {"clip": 0, "refuse": 0},
            "round": {"minimum": work.clients},
        },
    }
    path = folder / f"{FEDERATION}.yaml"
    path.write_text(json.dumps(scenario, indent=1))
    return path
