"""Next character by role with a GRU and an LSTM: federated beside pooled at the same rows seen."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from paper_models import package
from paper_runs import (
    SCRATCH,
    Document,
    open_data,
    option_parser,
    picture,
    save,
    simulate,
    values,
)

from fleet.experiments.estimates import estimate
from fleet.experiments.results import Report

ROUNDS = 15
#: Rows of a step; steps of a pooled "round", the mean of those of 8 roles.
BATCH, STEPS = 32, 201
#: At about so many passes over the rows both are compared.
EPOCHS = (1.5,)
#: Local optimizer and rate, by how rows are learned from: best of those in `SWEPT`.
RATES = {"federated": ("adam", 0.02), "pooled": ("adam", 0.01)}
#: Tried with the GRU and the first seed.
SWEPT = [("adam", 0.01), ("adam", 0.02), ("sgd", 1.0)]


def main() -> None:
    """Runs what is not there yet, and writes result and picture."""
    parser = option_parser(__doc__, "text_shakespeare.npz")
    options, began = parser.parse_args(), time.time()
    data, rows = _split(options.data)
    swept = [
        _row("gru", how, {0: _run("gru", how, 0, choice, ROUNDS, data)}, rows) | {"rate": choice}
        for how in RATES
        for choice in SWEPT
    ]
    found = []
    for cell in ("gru", "lstm"):
        for how, choice in RATES.items():
            seeds = range(options.seeds or 5)
            reports = {seed: _run(cell, how, seed, choice, ROUNDS, data) for seed in seeds}
            found.append(_row(cell, how, reports, rows) | {"rate": choice})
    document = {"data": "text_shakespeare.npz", "training_rows": rows, "rows": found}
    save("shakespeare", document | {"swept": swept}, reports[0], began)
    _draw(found)


def _split(path: Path) -> tuple[dict[str, str], int]:
    """Writes training rows and central rows; returns the changes that name them, and how many."""
    data = open_data(path, "text_shakespeare.npz")
    x, y, client = data["x"], data["y"], data["client"]
    train = np.zeros(len(y), bool)
    for role in np.unique(client):
        rows = np.flatnonzero(client == role)
        train[rows[: round(0.8 * len(rows))]] = True
    folder = SCRATCH / "shakespeare"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", x=x[train], y=y[train], client=client[train])
    test = np.flatnonzero(~train)[::4]
    np.savez(folder / "central.npz", text=x[test].astype(np.int32), target=y[test])
    names = {"data.path": "train.npz", "evaluation.data": "central.npz"}
    return {key: str(folder / name) for key, name in names.items()}, int(train.sum())


def _run(
    cell: str, how: str, seed: int, choice: tuple[str, float], rounds: int, data: dict[str, str]
) -> Report:
    optimizer, rate = choice
    changes = {
        **data,
        "model": str(package(cell)),
        "seed": seed,
        "rounds": rounds,
        "training.optimizer": optimizer,
        "training.learning_rate": rate,
    }
    if how == "pooled":  # one client that has all rows; a round is as many steps as of 8 roles
        changes |= {"partition.kind": "iid", "partition.clients": 1, "training.max_steps": STEPS}
    name = f"shakespeare-{cell}-{how}-{optimizer}-{rate}-{rounds}-{seed}"
    return simulate("shakespeare.yaml", changes, SCRATCH / name)


def _row(cell: str, how: str, reports: dict[int, Report], rows: int) -> Document:
    """Returns curves over passes over the rows, and accuracies where both are compared."""
    curves, passes = {}, {}
    for seed, report in reports.items():
        curves[str(seed)] = values(report, "central_accuracy")
        seen = [
            sum(agent["num_examples"] for agent in record["agents"].values())
            if how == "federated"
            else BATCH * STEPS
            for record in report.rounds
        ]
        passes[str(seed)] = [round(float(p), 3) for p in np.cumsum(seen) / rows]
    row: Document = {"cell": cell, "how": how, "curves": curves, "passes": passes}
    for epochs in EPOCHS:
        reached = [seed for seed in curves if passes[seed][-1] >= epochs - 0.01]
        if reached:
            found = estimate([_best(passes[seed], curves[seed], epochs) for seed in reached])
            row[f"best_within_{epochs}_epochs"] = {
                "mean": round(found.mean, 4),
                "sd": found.sd and round(found.sd, 4),
            }
    return row


def _best(passes: list[float], curve: list[float], epochs: float) -> float:
    return max(v for seen, v in zip(passes, curve, strict=True) if seen <= epochs)


def _draw(rows: list[Document]) -> None:
    panels = [
        {
            "title": f"next character, {cell.upper()} of 64 cells, 80 roles, 8 a round",
            "lines": {
                row["how"]: list(row["curves"].values()) for row in rows if row["cell"] == cell
            },
            "low": 0.15,
            "x": "round (a tenth of the rows)",
        }
        for cell in ("gru", "lstm")
    ]
    picture("shakespeare", panels)


if __name__ == "__main__":
    main()
