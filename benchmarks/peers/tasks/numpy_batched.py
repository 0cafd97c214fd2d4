"""No framework and no loop over the clients: each operation is one numpy call for all of them."""

import numpy as np
from measured import Meter, given
from mlp import join, one_hot, sgd_step, split

meter = Meter()
work = given()
labels = one_hot(work.y)
theta = work.theta.copy()
for round_index in range(work.rounds):
    parts = [np.repeat(part[None], work.clients, 0) for part in split(theta)]
    order = work.orders[round_index]
    for start in range(0, order.shape[1], work.batch):
        rows = order[:, start : start + work.batch, None]
        x = np.take_along_axis(work.x, rows, 1)
        sgd_step(parts, x, np.take_along_axis(labels, rows, 1), work.rate)
    theta = join([part.mean(0, np.float64) for part in parts]).astype(np.float32)
    meter.round()
meter.finish(theta, "numpy")
