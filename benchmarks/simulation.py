"""What a simulation in virtual time costs for each agent and round, beyond its training steps.

    python benchmarks/simulation.py [--agents 500] [--rounds 10] [--repeats 5] [--base FOLDER]
        [--json] [--save]

The same federation runs twice in one process. The first run trains, and every job's time is taken;
the second gets the very same results from memory: what is left is the machines, their messages,
the broker and the clock. Both must end with the same θ. A round is a plan, its weights, an update,
its receipt, a second plan for the evaluation, the new weights and a report. Beside it: the same
without the evaluation, with the invariants checked after every event, with a trace written, and
with a dense network of 2,410 parameters (16 rows, two steps, float32, no evaluation), whose whole
cost, training included, is what `benchmarks/peers` compares.

With `--base FOLDER`, an earlier checkout, the same is measured there as well, for a ratio that
depends less on how busy the machine is.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import logging
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, budget, finish, option_parser, shown, spread

from coordinator.config import CohortConfig, CoordinatorConfig, EvaluationConfig, StartConfig
from edge_agent.data.dataset import LocalDataset
from fleet.virtual.event_trace import Observer, TraceFile
from fleet.virtual.faults import FaultPlan
from fleet.virtual.invariants import Invariants
from fleet.virtual.profiles import DeviceProfile
from fleet.virtual.scenario_generator import draw_dataset
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Setting, Simulation, make_device
from learning.algorithms.training import TrainingPlan
from models.package.package import ModelPackage, load_package
from models.zoo import load_zoo

BUDGET_MS = 0.25
MLP = "MLP of 2,410"
WAYS = ("plain", "no evaluation", "invariants checked", "trace written", MLP)
_MLP = Path(__file__).resolve().parent / "mlp_2410"


def make_setting(
    way: str, agents: int, rounds: int, worker: SimulatedWorker, package: ModelPackage
) -> Setting:
    is_mlp = way == MLP
    config = CoordinatorConfig(
        federation="bench",
        model=package.spec.name,
        rounds=rounds,
        cohort=CohortConfig(announce="rule"),  # as a large fleet does: a list of ids grows with it
        start=StartConfig(agents=agents, timeout_s=600.0),
        evaluation=EvaluationConfig(every=0 if is_mlp or way == "no evaluation" else 1),
        training=TrainingPlan(
            epochs=1 if is_mlp else 2, batch_size=8 if is_mlp else 16, learning_rate=0.05
        ),
        codec="float32" if is_mlp else "int8",
    )
    dataset = draw_rows if is_mlp else partial(draw_dataset, 7)
    devices = [
        make_device(f"pi-{n}", "bench", DeviceProfile(), FaultPlan(), dataset=dataset(n % 50))
        for n in range(agents)
    ]
    observers: list[Observer] = []
    if way == "invariants checked":
        observers = [Invariants(config, package)]
    elif way == "trace written":
        observers = [TraceFile(io.StringIO())]
    return Setting(config, package, devices, observers=observers, worker=worker)


def draw_rows(number: int) -> LocalDataset:
    """16 rows for the MLP, all of them to learn from."""
    spec = load_package(_MLP).spec
    (given,), (target,) = spec.inputs, spec.targets
    rng = np.random.default_rng([number, 3])
    arrays = {
        given.name: rng.normal(size=(16, *given.shape)).astype(np.float32),
        target.name: rng.integers(0, 10, (16, *target.shape)).astype(target.dtype),
    }
    return LocalDataset(arrays, np.arange(16), np.arange(0), np.arange(16), {})


def run(way: str, agents: int, rounds: int, worker: SimulatedWorker) -> tuple[float, bytes, int]:
    """Processor seconds beside those of the jobs, θ, and events handled by all machines."""
    package = load_package(_MLP) if way == MLP else load_zoo("house_price")
    simulation = Simulation(make_setting(way, agents, rounds, worker, package))
    gc.collect()  # what the run before left
    began, jobs_s = time.process_time(), worker.busy_s
    simulation.run()
    seconds = time.process_time() - began - (worker.busy_s - jobs_s)
    theta = simulation.coordinator.coordinator.progress.theta
    return seconds, theta.tobytes(), simulation.world.events


def measure_way(way: str, agents: int, rounds: int, repeats: int) -> Report:
    worker = SimulatedWorker(remember=True)
    beside_s, theta, events = run(way, agents, rounds, worker)
    jobs_s = worker.busy_s
    replays = []
    for _ in range(repeats):
        seconds, again, _ = run(way, agents, rounds, worker)
        if again != theta:
            raise RuntimeError(f"{way}: the replay ended with another θ")
        replays.append(1000 * seconds / (agents * rounds))
    return {
        "ms_per_agent_round": spread(replays),
        "subtracted_ms_per_agent_round": 1000 * beside_s / (agents * rounds),
        "training_ms_per_agent_round": 1000 * jobs_s / (agents * rounds),
        "events_per_agent_round": events / (agents * rounds),
    }


def measure(options: argparse.Namespace) -> Report:
    ways = {way: measure_way(way, options.agents, options.rounds, options.repeats) for way in WAYS}
    median = ways["plain"]["ms_per_agent_round"]["median"]
    base = {} if options.base is None else {"base": measure_base(options)}
    return {
        "agents": options.agents,
        "rounds": options.rounds,
        "ways": ways,
        **base,
        "budgets": [
            budget(median, BUDGET_MS, "simulation, ms per agent and round beyond its training")
        ],
    }


def measure_base(options: argparse.Namespace) -> Report:
    """The same with the packages of another checkout, in a process of its own."""
    numbers = ("agents", "rounds", "repeats")
    arguments = [part for n in numbers for part in (f"--{n}", str(getattr(options, n)))]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--json"],
        env={**os.environ, "PYTHONPATH": str(options.base)},
        stdout=subprocess.PIPE,
        check=False,  # a budget that is missed is told by the exit code
    )
    ways: Report = json.loads(done.stdout)["ways"]
    return ways


def show(report: Report) -> None:
    agents, rounds = report["agents"], report["rounds"]
    print(f"{agents} agents, {rounds} rounds, house_price; ms per agent and round\n")
    print(f"{'':22s}{'replayed':>22s}{'subtracted':>12s}{'training':>10s}{'events':>8s}")
    for name, row in report["ways"].items():
        found: dict[str, Any] = row
        print(
            f"{name:22s}{shown(found['ms_per_agent_round'], digits=3):>22s}"
            f"{found['subtracted_ms_per_agent_round']:>12.3f}"
            f"{found['training_ms_per_agent_round']:>10.3f}"
            f"{found['events_per_agent_round']:>8.1f}"
        )
    for name, row in report.get("base", {}).items():
        before, now = (r["ms_per_agent_round"]["median"] for r in (row, report["ways"][name]))
        print(f"{name:22s}{before:.3f} in the base, {now / before:.2f} of it now")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--base", type=Path, help="an earlier checkout to compare with")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    finish("simulation", measure(options), options, show)


if __name__ == "__main__":
    main()
