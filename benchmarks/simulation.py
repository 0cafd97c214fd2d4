"""What a simulation in virtual time costs for each agent and round, beyond its training steps.

    python benchmarks/simulation.py [--agents 500] [--rounds 10] [--repeats 5] [--json] [--save]

The same federation runs twice in one process. The first run trains, and every job's time is taken;
the second gets the very same results from memory: what is left is the machines, their messages,
the broker and the clock. Both must end with the same θ. A round is a plan, its weights, an update,
its receipt, a second plan for the evaluation, the new weights and a report. Beside it: the same
without the evaluation, with the invariants checked after every event, and with a trace written.
"""

from __future__ import annotations

import argparse
import io
import logging
import time
from typing import Any

from measure import Report, budget, finish, option_parser, shown, spread

from coordinator.config import CohortConfig, CoordinatorConfig, EvaluationConfig, StartConfig
from fleet.virtual.event_trace import Observer, TraceFile
from fleet.virtual.faults import FaultPlan
from fleet.virtual.invariants import Invariants
from fleet.virtual.profiles import DeviceProfile
from fleet.virtual.scenario_generator import draw_dataset
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Setting, Simulation, make_device
from learning.algorithms.training import TrainingPlan
from models.package.package import ModelPackage
from models.zoo import load_zoo

BUDGET_MS = 0.25
WAYS = ("plain", "no evaluation", "invariants checked", "trace written")


def make_setting(
    way: str, agents: int, rounds: int, worker: SimulatedWorker, package: ModelPackage
) -> Setting:
    config = CoordinatorConfig(
        federation="bench",
        model="house_price",
        rounds=rounds,
        cohort=CohortConfig(announce="rule"),  # as a large fleet does: a list of ids grows with it
        start=StartConfig(agents=agents, timeout_s=600.0),
        evaluation=EvaluationConfig(every=0 if way == "no evaluation" else 1),
        training=TrainingPlan(epochs=2, batch_size=16, learning_rate=0.05),
    )
    devices = [
        make_device(
            f"pi-{n}", "bench", DeviceProfile(), FaultPlan(), dataset=draw_dataset(7, n % 50)
        )
        for n in range(agents)
    ]
    observers: list[Observer] = []
    if way == "invariants checked":
        observers = [Invariants(config, package)]
    elif way == "trace written":
        observers = [TraceFile(io.StringIO())]
    return Setting(config, package, devices, observers=observers, worker=worker)


def run(way: str, agents: int, rounds: int, worker: SimulatedWorker) -> tuple[float, bytes, int]:
    """Wall seconds of the rounds, θ, and events handled by all machines."""
    simulation = Simulation(make_setting(way, agents, rounds, worker, load_zoo("house_price")))
    began = time.process_time()
    simulation.run()
    seconds = time.process_time() - began
    theta = simulation.coordinator.coordinator.progress.theta
    return seconds, theta.tobytes(), simulation.world.events


def measure_way(way: str, agents: int, rounds: int, repeats: int) -> Report:
    worker = SimulatedWorker(remember=True)
    trained_s, theta, events = run(way, agents, rounds, worker)
    jobs_s = worker.busy_s
    replays = []
    for _ in range(repeats):
        seconds, again, _ = run(way, agents, rounds, worker)
        if again != theta:
            raise RuntimeError(f"{way}: the replay ended with another θ")
        replays.append(1000 * seconds / (agents * rounds))
    return {
        "ms_per_agent_round": spread(replays),
        "subtracted_ms_per_agent_round": 1000 * (trained_s - jobs_s) / (agents * rounds),
        "training_ms_per_agent_round": 1000 * jobs_s / (agents * rounds),
        "events_per_agent_round": events / (agents * rounds),
    }


def measure(options: argparse.Namespace) -> Report:
    ways = {way: measure_way(way, options.agents, options.rounds, options.repeats) for way in WAYS}
    median = ways["plain"]["ms_per_agent_round"]["median"]
    return {
        "agents": options.agents,
        "rounds": options.rounds,
        "ways": ways,
        "budgets": [
            budget(median, BUDGET_MS, "simulation, ms per agent and round beyond its training")
        ],
    }


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


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    finish("simulation", measure(options), options, show)


if __name__ == "__main__":
    main()
