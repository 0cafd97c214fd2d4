"""Every algorithm by its name in configurations and plans."""

from __future__ import annotations

from learning.algorithms.adaptive import FedAdagrad, FedAdam, FedYogi
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.fedavg import FedAvg, FedAvgM
from learning.algorithms.fedprox import FedProx
from learning.algorithms.scaffold import Scaffold
from learning.registry import Registry

ALGORITHMS: Registry[Algorithm] = Registry(
    "algorithm", FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi, FedProx, Scaffold
)
