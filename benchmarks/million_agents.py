"""A round of a million simulated agents: time, memory, set-up and bytes on disk.

    python benchmarks/million_agents.py [--agents 1000000] [--processes 2] [--json] [--save]

Agents have 16 rows each, drawn from one table, and make two steps. Each figure is from a process of
its own, with its workers; memory is of all of them together, what they share counted once. Where
other work runs beside, a round takes longer: its processor seconds, with start and set-up, divided
by the processes, are what it takes on cores of its own. An idle agent's memory is measured in a
process that only sets the fleet up.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
import tracemalloc
from typing import Any

from cohort_fleets import Family, Rounds, fleet, simulate
from measure import Report, budget, finish, option_parser, run_worker

from coordinator.config import QuarantineConfig
from fleet.batched.cohort.agent_data import agent_data
from fleet.batched.cohort.task import Columns
from fleet.batched.fleet_roster import FleetRoster, FleetStandings
from fleet.batched.simulate import How

MODELS = ("mlp_2410", "dense_10000")
MOST_S, MOST_BYTES, IDLE_BYTES = 300.0, 4 << 30, 200.0
#: A run of a million agents takes minutes, on a busy machine more.
_TIMEOUT_S = 3600.0


def one_run(case: dict[str, Any]) -> Report:
    """Runs a federation; returns what it took."""
    agents = case["agents"]
    how = How(case.get("mode", "arrays"), processes=case["processes"], ray=case.get("ray"))
    began = time.perf_counter()
    changes = case.get("federation", {})
    with fleet(case["model"], agents, case["rounds"], case["codec"], **changes) as (made, folder):
        ready_s = time.perf_counter() - began
        rounds = Rounds()
        with Family() as family:
            simulate(made, how, folder, rounds)
        devices = folder / "devices"
        disk = (
            sum(f.stat().st_blocks * 512 for f in devices.rglob("*.npy")) if devices.exists() else 0
        )
        last = rounds.records[-1]
    return {
        **case,
        "set_up_s": ready_s,
        "wall_s": rounds.per_round(rounds.wall_s),
        "processor_s": family.processor_s,
        "memory_bytes": family.largest_bytes,
        "state_bytes_per_agent": disk / agents,
        "reported": last.reported,
        "measured": last.measured,
        "bytes_up": last.bytes_up,
    }


def idle(agents: int) -> Report:
    """Sets a fleet up without a round; returns seconds and bytes an agent beyond its rows."""
    began = time.process_time()
    with fleet("mlp_2410", agents, 1) as (made, _):
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        names = made.participants.rows.names
        data = agent_data(made.participants)
        roster = FleetRoster(names, (), data, FleetStandings(QuarantineConfig(), {}))
        eligible = roster.eligible_agents("train")
        columns = Columns.empty(agents)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        rows = sum(array.nbytes for array in data.arrays.values())
        own = made.participants.rows
        indexes = own.offsets.nbytes + data.num_train.nbytes
        assert len(eligible) == len(columns.attempts) == agents
    return {
        "agents": agents,
        "processor_s": time.process_time() - began,
        "bytes_per_agent": (held - rows + indexes) / agents,
        "row_bytes_per_agent": own.index.nbytes / agents,
    }


def measure(options: argparse.Namespace) -> Report:
    def worker(**case: Any) -> Report:
        found: Report = run_worker(__file__, [json.dumps(case)], _TIMEOUT_S)
        print(json.dumps(found), file=sys.stderr, flush=True)
        return found

    agents, processes = options.agents, options.processes
    common = {"agents": agents, "processes": processes, "rounds": 1, "codec": "float32"}
    runs = {model: worker(**common, model=model) for model in MODELS}
    runs["mlp_2410, C = 0.01"] = worker(
        **common | {"rounds": 2}, model="mlp_2410", federation={"cohort": {"fraction": 0.01}}
    )
    runs["mlp_2410, evaluated"] = worker(
        **common,
        model="mlp_2410",
        federation={"evaluation": {"every": 1}, "test_fraction": 0.25},
    )
    runs["2NN"] = worker(
        **common | {"agents": max(1, agents // 100)}, model="handwritten_digit", mode="bytes"
    )
    few = max(1, agents // 10)
    runs["mlp_2410, int8"] = worker(**common | {"agents": few, "codec": "int8"}, model="mlp_2410")
    for name, more in (("one process", {"processes": 1}), ("Ray", {"ray": "local"})):
        runs[f"mlp_2410, {name}"] = worker(**common | {"agents": few} | more, model="mlp_2410")
    runs["mlp_2410, two processes"] = worker(**common | {"agents": few}, model="mlp_2410")
    idles = [worker(idle=count) for count in (few, agents)]
    largest = [runs[model] for model in MODELS]
    return {
        "agents": agents,
        "processes": processes,
        "runs": runs,
        "idle": idles,
        "budgets": [
            *(budget(r["wall_s"][0], MOST_S, f"{r['model']}, s a round") for r in largest),
            *(
                budget(r["processor_s"] / processes, MOST_S, f"{r['model']}, processor s a core")
                for r in largest
            ),
            *(
                budget(r["memory_bytes"] / 2**30, MOST_BYTES / 2**30, f"{r['model']}, GiB in all")
                for r in largest
            ),
            budget(idles[-1]["bytes_per_agent"], IDLE_BYTES, "bytes an idle agent, beyond rows"),
        ],
    }


def show(report: Report) -> None:
    print(
        f"{'':26s}{'agents':>10s}{'set-up s':>10s}{'round s':>16s}{'CPU s':>8s}{'GiB':>7s}"
        f"{'state B':>9s}"
    )
    for name, run in report["runs"].items():
        rounds = " ".join(f"{seconds:.1f}" for seconds in run["wall_s"])
        print(
            f"{name:26s}{run['agents']:>10,d}{run['set_up_s']:>10.1f}{rounds:>16s}"
            f"{run['processor_s']:>8.0f}{run['memory_bytes'] / 2**30:>7.2f}"
            f"{run['state_bytes_per_agent']:>9,.0f}"
        )
    for row in report["idle"]:
        print(
            f"idle: {row['agents']:,d} agents set up in {row['processor_s']:.1f} s of processor "
            f"time, {row['bytes_per_agent']:.0f} bytes each beside "
            f"{row['row_bytes_per_agent']:.0f} of row numbers"
        )


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.worker:
        case = json.loads(options.worker)
        print(json.dumps(idle(case["idle"]) if "idle" in case else one_run(case)))
        return
    finish("million_agents", measure(options), options, show)


if __name__ == "__main__":
    main()
