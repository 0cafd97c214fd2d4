"""No framework: a loop over the clients in Python, numpy for the arithmetic."""

from measured import Meter, given
from mlp import join, one_hot, sgd_step, split

meter = Meter()
work = given()
labels = one_hot(work.y)
theta = work.theta.copy()
for round_index in range(work.rounds):
    total = 0.0 * theta
    for client in range(work.clients):
        order = work.orders[round_index, client]
        parts = split(theta.copy())
        for start in range(0, len(order), work.batch):
            rows = order[start : start + work.batch]
            sgd_step(parts, work.x[client].take(rows, 0), labels[client].take(rows, 0), work.rate)
        total += join(parts) - theta
    theta += total / work.clients
    meter.round()
meter.finish(theta, "numpy")
