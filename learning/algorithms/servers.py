"""Server optimizers: algorithms whose device half is plain, so that another may replace it."""

from __future__ import annotations

from learning.algorithms.adaptive import FedAdagrad, FedAdam, FedYogi
from learning.algorithms.fedavg import FedAvg, FedAvgM
from learning.registry import Registry

SERVERS: Registry[FedAvg] = Registry(
    "server_optimizer", FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi
)
