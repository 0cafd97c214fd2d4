"""Flower's ServerApp: its FedAvg, all clients in every round, nothing evaluated on them."""

import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from measured import read_work
from mlp import join, split

app = ServerApp()
#: Called after every round; `flower_ray.py` puts its own here.
on_round = []


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds; θ goes to the file that the run names."""
    work = read_work(Path(context.run_config.get("work") or os.environ["PEERS_WORK"]))
    out = Path(str(context.run_config.get("out") or os.environ["PEERS_OUT"]))
    marks = []

    def mark(server_round, _arrays):
        if server_round:
            marks.append(time.monotonic())
            for call in on_round:
                call()

    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=work.clients, min_available_nodes=work.clients
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(split(work.theta)),
        num_rounds=work.rounds,
        evaluate_fn=mark,
    )
    np.save(out.with_suffix(".npy"), join(result.arrays.to_numpy_ndarrays()))
    out.with_suffix(".json").write_text(json.dumps(marks))
