"""What a device's limits hold: the memory that is foretold, the share of the processor, their cost.

    python benchmarks/limits.py [--seconds 4] [--json] [--save]

Memory: for every model of the zoo, in a process of its own, the peak above what Python, numpy and
the agent's modules hold already, after 500 rows, four steps of Adam, an evaluation and an int8
update; beside what `memory_estimate` said before. Processor: CPU time of a training thread as a
part of the time that passed, for several `cpu_share`. On a busy machine it gets less than it may.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import Report, budget, finish, option_parser, run_worker

from edge_agent.data.config import DataConfig
from edge_agent.data.size import data_bytes
from edge_agent.device import LinuxDevice
from edge_agent.machine.limits import LimitsConfig
from edge_agent.training.memory_estimate import estimate
from edge_agent.training.throttle import Throttle
from edge_agent.training.trainer import train
from fedge.errors import TrainingError
from fedge.system import resident_bytes
from learning.algorithms.training import TrainingPlan
from learning.codecs.feedback import encode_with_feedback
from learning.codecs.registry import CODECS
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.runtime.rows import Rows
from models.zoo import load_zoo, zoo_names

ROWS = 500
SHARES = (1.0, 0.5, 0.25, 0.1)
SHARE_MODEL = "handwritten_digit"
READS = 300


def zeros(package: ModelPackage, rows: int) -> Rows:
    """Rows that fit the model."""
    return {t.name: np.zeros((rows, *t.shape), t.dtype) for t in package.spec.columns}


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def worker(name: str) -> Report:
    """Foretold and taken, in bytes."""
    package = load_zoo(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, **zeros(package, ROWS))
        data = data_bytes(DataConfig(path=str(path)), package.spec, Path(), None)
        need = estimate(package.spec, package.program, data)
        before = resident_bytes() or 0
        with np.load(path) as file:
            stored = dict(file)
            rows = {key: array.copy() for key, array in stored.items()}
            del stored
    program = Program(package.program, package.spec)
    rng = np.random.default_rng(0)
    plan = TrainingPlan(optimizer="adam", max_steps=4, learning_rate=1e-4)
    result = train(program, package.initial, rows, plan, rng)
    program.evaluate(package.initial, rows)
    encode_with_feedback(CODECS.make("int8"), result.delta, None, 0, rng)
    return {"foretold": need.total, "taken": peak_bytes() - before, "runtime": program.runtime}


def share_of(share: float, seconds: float) -> float:
    """CPU time of this thread per second that passes, while it trains."""
    package = load_zoo(SHARE_MODEL)
    program = Program(package.program, package.spec)
    end_s = time.monotonic() + seconds
    throttle = Throttle(share, lambda: time.monotonic() > end_s)
    began_s, cpu_s = time.monotonic(), time.thread_time()
    plan = TrainingPlan(epochs=10_000, learning_rate=1e-6)
    try:
        rng = np.random.default_rng(0)
        train(
            program,
            package.initial,
            zeros(package, 2000),
            plan,
            rng,
            throttle.wait_and_check_cancelled,
        )
    except TrainingError:
        pass  # the time is over
    return (time.thread_time() - cpu_s) / (time.monotonic() - began_s)


def read_us() -> float:
    """Microseconds of a look at the device, NetworkManager left out."""
    device = LinuxDevice()
    limits = LimitsConfig(max_temperature_c=70, min_battery_percent=20)
    began_s = time.perf_counter()
    for _ in range(READS):
        device.read(limits)
    return (time.perf_counter() - began_s) / READS * 1e6


def measure(options: argparse.Namespace) -> Report:
    memory = {name: run_worker(__file__, [name], 300) for name in zoo_names()}
    shares = {str(share): share_of(share, options.seconds) for share in SHARES}
    worst = max(row["taken"] / row["foretold"] for row in memory.values())
    over = max(found - float(share) for share, found in shares.items())
    return {
        "rows": ROWS,
        "memory_bytes": memory,
        "cpu_share": {"model": SHARE_MODEL, "found": shares},
        "read_us": read_us(),
        "budgets": [
            budget(worst, 1.0, "memory taken, part of what was foretold, worst model"),
            budget(over, 0.05, "CPU time beyond cpu_share, worst share"),
        ],
    }


def show(report: Report) -> None:
    print(f"MB for {report['rows']} rows{'':>10s}{'foretold':>10s}{'taken':>8s}")
    for name, row in report["memory_bytes"].items():
        print(f"  {name:22s}{row['foretold'] / 1e6:>10.1f}{row['taken'] / 1e6:>8.1f}")
    print("\ncpu_share      found")
    for share, found in report["cpu_share"]["found"].items():
        print(f"  {share:10s}{found:>8.3f}")
    print(f"\na look at the device: {report['read_us']:.0f} µs")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each share")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker)))
        sys.exit()
    finish("limits", measure(options), options, show)


if __name__ == "__main__":
    main()
