"""Gradients of a cohort: one call of an interpreter for each agent, and all together in numpy.

    python benchmarks/kernels.py [--repeats 3] [--models house_price,...] [--json] [--save]

Processor time of one thread for an agent and step: `Program.gradient` on each interpreter, with θ
of each agent, beside `VectorizedProgram.gradient` with θ of each agent and with one θ for all (the
first step of a round). Each engine has a process of its own; their turns alternate. Each model runs
with the number of rows that its program is made for and with fewer, which an interpreter pads.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported, here and in the workers

import numpy as np
from measure import Report, budget, finish, option_parser, run_worker, shown, spread

HERE = Path(__file__).parent
#: Model -> (agents, rows of a step: of small local data, and as the program is made for).
CASES: dict[str, tuple[int, tuple[int, int]]] = {
    "house_price": (256, (16, 256)),
    "mlp_2410": (256, (8, 16)),
    "handwritten_digit": (16, (10, 32)),
    "wearable_activity": (32, (16, 32)),
    "handwritten_digit_cnn": (16, (10, 32)),
    "road_traffic": (64, (8, 32)),
}
RUNTIMES = ("tflite-runtime", "ai-edge-litert")
NUMPY = "numpy"
#: (model, rows, what) -> microseconds.
LIMITS = {
    ("house_price", 16, "own"): 1.0,
    ("mlp_2410", 8, "own"): 9.0,
    ("mlp_2410", 8, "shared"): 5.0,
}
BLOCK_S = 0.1  # one timing
BLOCKS = 3  # timings in one process; the fastest counts
COMPARED = 4  # agents whose gradients are compared


def case_of(name: str, agents: int, rows: int) -> tuple[Any, Any, dict[str, Any]]:
    """A package, θ of each agent, and rows of each agent, drawn at random."""
    from models.zoo import open_model

    folder = HERE / name
    package = open_model(str(folder) if folder.is_dir() else name)
    spec, rng = package.spec, np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for tensor in spec.columns:
        shape = (agents, rows, *tensor.shape)
        if tensor.dtype == "int32":
            columns[tensor.name] = rng.integers(0, spec.class_count(tensor), shape, np.int32)
        else:
            columns[tensor.name] = rng.normal(size=shape).astype(np.float32)
    theta = package.whole(package.initial)
    noise = rng.normal(scale=0.01, size=(agents, theta.size))
    return package, (theta + noise).astype(np.float32), columns


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call: the fastest of several blocks."""
    call()
    found = []
    for _ in range(BLOCKS):
        started, calls = time.process_time(), 0
        while time.process_time() - started < BLOCK_S or calls < 2:
            call()
            calls += 1
        found.append((time.process_time() - started) / calls)
    return min(found)


def work(engine: str, models: str) -> dict[str, dict[str, float]]:
    """Microseconds for an agent and step, by case, on one engine."""
    found = {}
    for name in models.split(","):
        agents, counts = CASES[name]
        for rows in counts:
            package, theta, columns = case_of(name, agents, rows)
            measured = in_numpy if engine == NUMPY else one_by_one
            found[f"{name}:{rows}"] = measured(engine, package, theta, columns)
    return found


def one_by_one(engine: str, package: Any, theta: Any, columns: dict[str, Any]) -> dict[str, float]:
    """An interpreter, called for each agent."""
    from models.runtime.program import Program

    program = Program(package.program, package.spec, frozen=package.frozen, runtime=engine)
    parts = [{name: array[agent] for name, array in columns.items()} for agent in range(len(theta))]

    def every() -> None:
        for start, rows in zip(theta, parts, strict=True):
            program.gradient(start, rows)

    return {"own": 1e6 * seconds(every) / len(theta)}


def in_numpy(_engine: str, package: Any, theta: Any, columns: dict[str, Any]) -> dict[str, float]:
    """All agents in one call; and how far their gradients are from an interpreter's."""
    from models.runtime.program import Program
    from models.vectorized.kernel import VectorizedProgram

    kernel = VectorizedProgram(package.program, package.spec, frozen=package.frozen)
    program = Program(package.program, package.spec, frozen=package.frozen)
    found, off = kernel.gradient(theta, columns).vector, 0.0
    for agent in range(COMPARED):
        rows = {name: array[agent] for name, array in columns.items()}
        wanted = program.gradient(theta[agent], rows).vector
        off = max(off, float(np.linalg.norm(found[agent] - wanted) / np.linalg.norm(wanted)))
    out = np.empty_like(theta)
    return {
        "own": 1e6 * seconds(lambda: kernel.gradient(theta, columns, out=out)) / len(theta),
        "shared": 1e6 * seconds(lambda: kernel.gradient(theta[0], columns, out=out)) / len(theta),
        "difference": off,
    }


def measure(options: Any) -> Report:
    """All engines in turn, several times."""
    models = options.models or ",".join(CASES)
    engines = (*RUNTIMES, NUMPY)
    runs: dict[str, list[Any]] = {engine: [] for engine in engines}
    for _ in range(options.repeats):
        for engine in engines:
            runs[engine].append(run_worker(__file__, [engine, models], 600))
    cases, budgets = [], []
    for case in runs[NUMPY][0]:
        name, rows = case.split(":")
        row: Report = {"model": name, "rows": int(rows), "agents": CASES[name][0]}
        for engine in engines:
            for what in ("own", "shared"):
                times = [run[case][what] for run in runs[engine] if what in run[case]]
                if times:
                    row[engine if what == "own" else f"{engine}, one θ"] = spread(times)
        row["difference"] = max(run[case]["difference"] for run in runs[NUMPY])
        best = min(row[engine]["median"] for engine in RUNTIMES)
        row["times as fast"] = best / row[NUMPY]["median"]
        for what in ("own", "shared"):
            if limit := LIMITS.get((name, int(rows), what)):
                value = statistics.median(run[case][what] for run in runs[NUMPY])
                label = "θ of each agent" if what == "own" else "one θ"
                budgets.append(budget(value, limit, f"{name}, {rows} rows, {label}: µs"))
        budgets.append(budget(row["difference"], 1e-5, f"{name}, {rows} rows: difference"))
        cases.append(row)
    return {"cases": cases, "budgets": budgets}


def show(report: Report) -> None:
    print("µs of an agent and step; ratio: the faster interpreter / numpy, θ of each agent\n")
    keys = (*RUNTIMES, NUMPY, f"{NUMPY}, one θ")
    print(f"{'model':<22}{'rows':>5}" + "".join(f"{key:>28}" for key in keys) + f"{'ratio':>8}")
    for row in report["cases"]:
        times = "".join(f"{shown(row[key]):>28}" for key in keys)
        print(f"{row['model']:<22}{row['rows']:>5}{times}{row['times as fast']:>7.1f}x")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(*sys.argv[2:4])))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", help=f"of {', '.join(CASES)}, separated by commas")
    options = parser.parse_args()
    finish("kernels", measure(options), options, show)


if __name__ == "__main__":
    main()
