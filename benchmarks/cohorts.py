"""What a simulated agent costs in a round: event by event, as a cohort, and with nothing around it.

    python benchmarks/cohorts.py [--agents 16384] [--exact-agents 256] [--rounds 2] [--repeats 2]
                                 [--json] [--save]

An MLP of 2,410 parameters, 16 rows an agent, 2 SGD steps, no evaluation; processor time of this
process, all included: training, encoding, the coordinator's intake and aggregation. Ways take
turns, so that what else the machine does slows all of them alike; ratios are of one turn. The
smallest figure of a way is nearest to what it costs on a machine of its own. Beside them the same
training by numpy alone: agent by agent, and one batched call for all. Memory is that of a process
for each way.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the command line does, before numpy is imported

import numpy as np
from cohort_fleets import BATCH, ROWS, Rounds, fleet, simulate
from measure import Report, budget, finish, option_parser, run_worker, shown, spread
from numpy.typing import NDArray
from simulation import MLP
from simulation import run as run_exact

from fleet.batched.cohort.task import Mode
from fleet.batched.simulate import How
from fleet.virtual.simulated_worker import SimulatedWorker

MODEL = "mlp_2410"
BYTES_US, ARRAYS_US = 120.0, 40.0
#: Agents of the fleet whose memory is measured.
_MANY = 65_536
_TIMEOUT_S = 1800.0
Array = NDArray[Any]


def cohort(mode: Mode, codec: str, agents: int, rounds: int) -> float:
    """Returns µs an agent and round; the first round, which has the start in it, is not counted."""
    with fleet(MODEL, agents, rounds + 1, codec) as (made, folder):
        found = Rounds()
        simulate(made, How(mode, "vectorized", processes=1), folder, found)
    return 1e6 * sum(found.per_round(found.processor_s)[1:]) / (agents * rounds)


def exact(agents: int, rounds: int) -> float:
    """Returns µs an agent and round of the simulation event by event, training included."""
    worker = SimulatedWorker(remember=False)
    beside_s, _, _ = run_exact(MLP, agents, rounds, worker)
    return 1e6 * (beside_s + worker.busy_s) / (agents * rounds)


def numpy_alone(at_once: int, agents: int, rounds: int) -> float:
    """Returns µs an agent and round of the training and the mean, without anything around them."""
    rng = np.random.default_rng(1)
    x = rng.random((agents, ROWS, 64), dtype=np.float32)
    y = np.eye(10, dtype=np.float32)[rng.integers(0, 10, (agents, ROWS))]
    theta = 0.1 * rng.standard_normal(2410, dtype=np.float32)
    began = time.process_time()
    for _ in range(rounds):
        total = np.zeros(2410)
        for first in range(0, agents, at_once):
            some = slice(first, first + at_once)
            own = np.repeat(theta[None], len(x[some]), 0)
            order = rng.permuted(np.tile(np.arange(ROWS), (len(own), 1)), axis=1)
            for start in range(0, ROWS, BATCH):
                rows = order[:, start : start + BATCH, None]
                step(
                    own,
                    np.take_along_axis(x[some], rows, 1),
                    np.take_along_axis(y[some], rows, 1),
                )
            total += own.sum(0, np.float64)
        theta = (total / agents).astype(np.float32)
    return 1e6 * (time.process_time() - began) / (agents * rounds)


def step(theta: Array, x: Array, y: Array) -> None:
    """One SGD step of a 64-32-10 network with ReLU and softmax; θ [A, 2410], changed."""
    count = len(theta)
    kernel_1, bias_1 = theta[:, :2048].reshape(count, 64, 32), theta[:, 2048:2080]
    kernel_2, bias_2 = theta[:, 2080:2400].reshape(count, 32, 10), theta[:, 2400:]
    hidden = np.maximum(x @ kernel_1 + bias_1[:, None], 0)
    logits = hidden @ kernel_2 + bias_2[:, None]
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    error = (logits / logits.sum(-1, keepdims=True) - y) / np.float32(x.shape[1])
    back = error @ kernel_2.swapaxes(1, 2) * (hidden > 0)
    rate = np.float32(0.1)
    kernel_2 -= rate * (hidden.swapaxes(1, 2) @ error)
    bias_2 -= rate * error.sum(1)
    kernel_1 -= rate * (x.swapaxes(1, 2) @ back)
    bias_1 -= rate * back.sum(1)


def ways(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    agents, rounds = options.agents, options.rounds
    return {
        "event by event": partial(exact, options.exact_agents, rounds),
        "bytes, float32": partial(cohort, "bytes", "float32", agents, rounds),
        "bytes, int8": partial(cohort, "bytes", "int8", agents, rounds),
        "arrays, float32": partial(cohort, "arrays", "float32", agents, rounds),
        "arrays, int8": partial(cohort, "arrays", "int8", agents, rounds),
        "numpy, a loop": partial(numpy_alone, 1, min(agents, 2048), rounds),
        "numpy, batched": partial(numpy_alone, 128, agents, rounds),
    }


def memory(mode: Mode) -> int:
    """Returns the largest resident memory of a process that simulates a fleet."""
    found: int = run_worker(__file__, [json.dumps([mode, "float32", _MANY])], _TIMEOUT_S)
    return found


def peak(mode: Mode, codec: str, agents: int) -> int:
    """Returns the largest resident memory of this process after a round."""
    import resource  # not on every system

    cohort(mode, codec, agents, 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure(options: argparse.Namespace) -> Report:
    made = ways(options)
    turns = [{name: way() for name, way in made.items()} for _ in range(options.repeats)]
    rows = {
        name: {
            "us_per_agent_round": spread(turn[name] for turn in turns),
            "of_numpy_batched": spread(turn[name] / turn["numpy, batched"] for turn in turns),
            "faster_than_events": spread(turn["event by event"] / turn[name] for turn in turns),
        }
        for name in made
    }
    least = {name: row["us_per_agent_round"]["min"] for name, row in rows.items()}
    return {
        "agents": options.agents,
        "exact_agents": options.exact_agents,
        "rounds": options.rounds,
        "ways": rows,
        "largest_memory_bytes": {mode: memory(mode) for mode in ("bytes", "arrays")},
        "budgets": [
            budget(least["bytes, float32"], BYTES_US, "bytes, µs an agent and round"),
            budget(least["arrays, float32"], ARRAYS_US, "arrays, µs an agent and round"),
        ],
    }


def show(report: Report) -> None:
    print(f"{report['agents']} agents; processor µs an agent and round, all included\n")
    print(f"{'':18s}{'µs':>26s}{'of numpy batched':>22s}{'faster than events':>24s}")
    for name, row in report["ways"].items():
        print(
            f"{name:18s}{shown(row['us_per_agent_round'], digits=1):>26s}"
            f"{shown(row['of_numpy_batched']):>22s}{shown(row['faster_than_events']):>24s}"
        )
    for mode, largest in report["largest_memory_bytes"].items():
        print(f"{mode}: {largest / 2**20:.0f} MiB with {_MANY:,d} agents")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=16_384)
    parser.add_argument("--exact-agents", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--worker", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.worker:
        print(json.dumps(peak(*json.loads(options.worker))))
        return
    finish("cohorts", measure(options), options, show)


if __name__ == "__main__":
    main()
