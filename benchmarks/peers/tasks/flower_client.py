"""Flower's ClientApp: the local steps in numpy. The same for the simulation and for SuperNodes."""

import os
from functools import cache
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from measured import read_work
from mlp import one_hot, sgd_step

app = ClientApp()


@cache
def read(path):
    """The work, read once by each process, and its labels one-hot."""
    work = read_work(Path(path))
    return work, one_hot(work.y)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch over this client's rows, in the order of its round."""
    work, labels = read(context.run_config.get("work") or os.environ["PEERS_WORK"])
    client = int(context.node_config["partition-id"])
    order = work.orders[int(message.content["config"]["server-round"]) - 1, client]
    parts = [part.copy() for part in message.content["arrays"].to_numpy_ndarrays()]
    for start in range(0, len(order), work.batch):
        rows = order[start : start + work.batch]
        sgd_step(parts, work.x[client].take(rows, 0), labels[client].take(rows, 0), work.rate)
    metrics = MetricRecord({"num-examples": len(order)})
    content = RecordDict({"arrays": ArrayRecord(parts), "metrics": metrics})
    return Message(content=content, reply_to=message)
