"""Rounds of FedAvg to 99 % with the CNN: McMahan et al. 2017, arXiv 1602.05629, table 2."""

from __future__ import annotations

import time

from paper_models import package
from paper_runs import SCRATCH, mnist, option_parser, picture, rounds_row, save, simulate

TARGET = 0.99
#: Name -> E, B, partition, the paper's rounds.
ROWS = {
    "E1-B10-iid": (1, 10, "iid", 34.0),
    "E5-B10-iid": (5, 10, "iid", 20.0),
    "E5-B50-iid": (5, 50, "iid", 29.0),
    "E20-B10-iid": (20, 10, "iid", 18.0),
    "E1-B10-shards": (1, 10, "shards", 350.0),
    "E5-B10-shards": (5, 10, "shards", 229.0),
}


def main() -> None:
    """Runs the rows that are asked for, and writes result and picture."""
    parser = option_parser(__doc__, "mnist_writers.npz")
    parser.add_argument("--row", choices=ROWS, action="append", help="repeatable; default: all")
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate")
    parser.add_argument("--rounds", type=int, default=400, help="most rounds")
    options, began = parser.parse_args(), time.time()
    data = mnist(options.data, SCRATCH / "mnist")
    rows = []
    for name in options.row or ROWS:
        epochs, batch, partition, paper = ROWS[name]
        reports = {
            seed: simulate(
                "mcmahan_cnn.yaml",
                {
                    **data,
                    "model": str(package("cnn")),
                    "seed": seed,
                    "rounds": options.rounds,
                    "partition.kind": partition,
                    "training.epochs": epochs,
                    "training.batch_size": batch,
                    "training.learning_rate": options.rate,
                },
                SCRATCH / f"cnn-{name}-{options.rate}-{seed}",
            )
            for seed in range(options.seeds or 1)
        }
        rows.append(rounds_row(name, reports, TARGET, paper) | {"rate": options.rate})
    save("mcmahan_cnn", {"data": "mnist_writers.npz", "rows": rows}, reports[0], began)
    lines = {row["label"]: list(row["curves"].values()) for row in rows}
    papers = {f"the paper, {row['label']}": row["paper"] for row in rows}
    panel = {"title": "CNN, C = 0.1", "lines": lines, "target": TARGET, "papers": papers}
    picture("mcmahan_cnn", [panel | {"low": 0.9}])


if __name__ == "__main__":
    main()
