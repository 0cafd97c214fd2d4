"""A federation for minutes on end: memory of every process, disk and log of every round.

    python benchmarks/soak.py [--minutes 14] [--agents 80] [--hosts 2] [--json] [--save]

Everything is what `fedge fleet run` starts: real Mosquitto, the coordinator's process, agents in
host processes. The model is `dense_10000/` (P = 10,000); every agent trains two steps and measures
every new θ on its held-out rows, one round after the other until the time is over.

After the warm-up, the first half of the time, a line is fitted to what each process holds
(VmRSS) over time. It is flat when the line rises or falls by at most 2 % of its mean until the end.
Files are those of the run: agents' states come and go with each round, and are flat when their
least sum rises by at most 2 % between the last two quarters; the coordinator's records grow, and
are stated as bytes a round, in the second half beside the first. So are the logs, which hold
warnings and errors only: hosts log no rounds. What processes have the disk write is write_bytes of
/proc, which counts pages and so is more than the bytes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import many_agents
import numpy as np
from measure import Report, budget, finish, option_parser, shown, spread

from coordinator.records.records import RoundRecord
from fleet.runs.run import RunOptions, run_scenario

MB = 1_000_000
#: Part of its mean that a line may rise or fall by.
FLAT = 0.02
#: Log of a round on average: a warning now and then.
LOG_BYTES = 100
#: Seconds between two samples.
EVERY_S = 1.0
ENDLESS = 1_000_000
PROCESSES = "processes"

Samples = dict[str, list[float]]


class TimeIsUpError(Exception):
    """Ends the run."""


class Watcher(many_agents.Watcher):
    """Samples memory and files after rounds, and ends the run when the time is over."""

    def __init__(self, out: Path, seconds: float) -> None:
        super().__init__()
        self.out = out
        self.seconds = seconds
        self.at_s: list[float] = []
        self.at_round: list[int] = []
        self.samples: Samples = defaultdict(list)

    def round(self, record: RoundRecord) -> None:
        """Takes a sample when it is due."""
        self.records.append(record)
        now_s = time.perf_counter() - self.began_s
        if not self.at_s or now_s - self.at_s[-1] >= EVERY_S:
            self.at_s.append(now_s)
            self.at_round.append(len(self.records))
            for name, value in (processes() | files(self.out / PROCESSES)).items():
                self.samples[name].append(value)
        if now_s > self.seconds:
            raise TimeIsUpError


def processes() -> dict[str, float]:
    """Resident bytes, and bytes written so far, of the processes that this one has started."""
    found: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with suppress(OSError):  # it has just ended
                name = _role(Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[f"memory of {name}"] = pages * os.sysconf("SC_PAGE_SIZE")
                with suppress(PermissionError):  # the broker may run as another user
                    io = Path(f"/proc/{pid}/io").read_text()
                    found[f"written by {name}"] = int(io.partition("\nwrite_bytes:")[2].split()[0])
    return found


def _role(command: list[str]) -> str:
    for role in ("mosquitto", "coordinator"):
        if any(role in part for part in command):
            return role
    return Path(next(part for part in command if "host-" in part)).name


def files(folder: Path) -> dict[str, float]:
    """Bytes of all files: logs, the coordinator's, and the agents'."""
    found = dict.fromkeys(("files, logs", "files, coordinator", "files, agents"), 0.0)
    for path in folder.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            size = path.stat().st_size if path.is_file() else 0
            own = "coordinator" if "coordinator" in path.parts else "agents"
            found["files, logs" if path.name == "log" else f"files, {own}"] += size
    return found


def rise(values: list[float]) -> float:
    """Returns the rise of the least value from the first half to the second, as a part of it.

    For what comes and goes with every round, as the files of agents do: it shows what stays.
    """
    half = len(values) // 2
    return min(values[half:]) / min(values[:half]) - 1


def drift(x: list[float], values: list[float]) -> float:
    """Returns the change of a line through the points, first to last, as a part of their mean."""
    slope = float(np.polyfit(x, values, 1)[0])
    return slope * (x[-1] - x[0]) / float(np.mean(values))


def measure(minutes: float, agents: int, hosts: int) -> Report:
    """One federation until the time is over."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        path = many_agents.write_scenario(folder, agents, ENDLESS)
        watcher = Watcher(folder / "out", 60 * minutes)
        with suppress(TimeIsUpError):
            run_scenario(path, RunOptions(folder / "out", broker="mosquitto", hosts=hosts), watcher)
    return summary(watcher, agents, hosts)


def summary(watcher: Watcher, agents: int, hosts: int) -> Report:
    """Drift of what must be flat, and growth a round of what grows."""
    half = len(watcher.at_s) // 2
    if half < 10:
        raise SystemExit(f"{len(watcher.at_s)} samples are too few: give more --minutes")
    records = watcher.records
    memory = {
        name.removeprefix("memory of "): _level(watcher, values, half)
        for name, values in watcher.samples.items()
        if name.startswith("memory of ") and len(values) == len(watcher.at_s)
    }
    growing = {
        name: _growth(watcher, values, half)
        for name, values in watcher.samples.items()
        if not name.startswith("memory of ") and len(values) == len(watcher.at_s)
    }
    states = _level(watcher, watcher.samples["files, agents"], half)
    states["drift"] = rise(watcher.samples["files, agents"][half:])
    logs = growing["files, logs"]["second_half"]
    return {
        "agents": agents,
        "hosts": hosts,
        "minutes": watcher.at_s[-1] / 60,
        "rounds": len(records),
        "round_s": spread(record.seconds for record in records),
        "lost": sum(record.asked - record.reported for record in records),
        "memory": memory,
        "agents_files": states,
        "bytes_per_round": growing,
        "budgets": [
            *(
                budget(abs(level["drift"]), FLAT, f"drift of {name}'s memory")
                for name, level in memory.items()
            ),
            budget(abs(states["drift"]), FLAT, "drift of the agents' files"),
            budget(logs, LOG_BYTES, "bytes of log a round"),
        ],
    }


def _level(watcher: Watcher, values: list[float], half: int) -> dict[str, float]:
    return {
        "first": values[0],
        "half": values[half],
        "last": values[-1],
        "drift": drift(watcher.at_s[half:], values[half:]),
    }


def _growth(watcher: Watcher, values: list[float], half: int) -> dict[str, float]:
    """Bytes a round, by the first and the last sample of each half."""
    rounds = watcher.at_round
    return {
        "first_half": (values[half] - values[0]) / (rounds[half] - rounds[0]),
        "second_half": (values[-1] - values[half]) / (rounds[-1] - rounds[half]),
    }


def show(report: Report) -> None:
    """Memory over time, then what a round writes."""
    print(
        f"{report['agents']} agents in {report['hosts']} hosts, {report['rounds']:,} rounds in "
        f"{report['minutes']:.1f} minutes, {shown(report['round_s'], digits=2)} s each, "
        f"{report['lost']} answers lost\n"
    )
    print(f"{'memory, MB':<24}{'first':>12}{'half-time':>12}{'last':>12}{'drift':>10}")
    rows = report["memory"] | {"agents' files": report["agents_files"]}
    for name, level in rows.items():
        numbers = "".join(f"{level[key] / MB:>12.1f}" for key in ("first", "half", "last"))
        flat = "flat" if abs(level["drift"]) <= FLAT else "NOT FLAT"
        print(f"{name:<24}{numbers}{level['drift']:>+10.2%}  {flat}")
    print(f"\n{'bytes a round':<32}{'first half':>14}{'second half':>14}")
    for name, growth in report["bytes_per_round"].items():
        print(f"{name:<32}{growth['first_half']:>14,.0f}{growth['second_half']:>14,.0f}")


def main() -> None:
    """See the module."""
    parser = option_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--agents", type=int, default=80)
    parser.add_argument("--hosts", type=int, default=2, help="processes that the agents share")
    options: Any = parser.parse_args()
    finish("soak", measure(options.minutes, options.agents, options.hosts), options, show)


if __name__ == "__main__":
    main()
