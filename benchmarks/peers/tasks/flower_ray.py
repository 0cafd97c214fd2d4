"""Flower's simulation on its Ray backend: one actor a core."""

import logging
import os
import sys
from pathlib import Path

import flower_server
import numpy as np
import ray
from flower_client import app as client_app
from flwr.simulation import run_simulation
from measured import Meter, given

meter = Meter(tree=True)
logging.getLogger("flwr").setLevel(logging.ERROR)
work = given()
cores = os.cpu_count() or 1
out = Path(sys.argv[2])
os.environ |= {"PEERS_WORK": str(work.path), "PEERS_OUT": str(out)}
flower_server.on_round.append(meter.round)
run_simulation(
    flower_server.app,
    client_app,
    num_supernodes=work.clients,
    backend_config={
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False},
    },
)
ray.shutdown()
meter.finish(np.load(out), "flwr", "ray", "numpy", actors=cores)
