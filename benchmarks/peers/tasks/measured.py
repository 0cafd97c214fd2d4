"""What the scripts of all peers share: the work they are given, and what is measured of them.

Imported first, with nothing beyond the standard library and numpy: it runs in every peer's own
environment. A script is started as `script WORK RESULT [ROUNDS]`; it prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TICKS = os.sysconf("SC_CLK_TCK")
MB = 1_000_000


@dataclass(frozen=True, eq=False)
class Work:
    """What every peer does.

    Attributes:
        x: inputs of each client, float32 [clients, rows, 64].
        y: labels, int32 [clients, rows].
        orders: in which each client takes its rows, by round: int [rounds, clients, rows].
        theta: before the first round, float32 [2410].
        batch: rows of a step.
        rate: of learning.
        path: of the file.
    """

    x: Array
    y: Array
    orders: Array
    theta: Array
    batch: int
    rate: float
    path: Path

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.orders)

    @property
    def clients(self) -> int:
        """Number of clients; each takes part in every round."""
        return len(self.x)

    def rows(self, round_index: int, client: int) -> tuple[Array, Array]:
        """Inputs and labels of a client in the order of this round."""
        order = self.orders[round_index, client]
        return self.x[client].take(order, 0), self.y[client].take(order)


def read_work(path: Path) -> Work:
    """The work in a file that `work.write_work` has written."""
    with np.load(path) as file:
        return Work(
            file["x"],
            file["y"],
            file["orders"],
            file["theta"],
            int(file["batch"]),
            float(file["rate"]),
            path,
        )


def descendants(pid: int) -> list[int]:
    """Processes below this one that are alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # ended meanwhile
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def processor_s(pid: int) -> float:
    """User and system seconds of a process and of its children that have ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    return sum(int(field) for field in stat.rpartition(")")[2].split()[11:15]) / TICKS


def resident_mb(pid: int, key: str = "VmRSS") -> float:
    """MB of a line of /proc: VmRSS, or VmHWM for its highest value; 0: no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [line for line in lines if line.startswith(f"{key}:")]
    return int(found[0].split()[1]) * 1024 / MB if found else 0.0


class Meter:
    """Times, memory and result of one script.

    Args:
        tree: the work is done by child processes too.
    """

    def __init__(self, *, tree: bool = False) -> None:
        self.imported_cpu_s = time.process_time()
        self.imported_s = self._since_spawned()
        self.tree = tree
        self.marks: list[tuple[float, float]] = []
        self.resident = 0.0

    @staticmethod
    def _since_spawned() -> float:
        # time.monotonic is the machine's: the same for the runner that has put it there.
        return time.monotonic() - float(os.environ.get("PEERS_SPAWNED", "0"))

    def _processor_s(self) -> float:
        own = os.times()
        total = time.process_time() + own.children_user + own.children_system
        if self.tree:
            total += sum(processor_s(pid) for pid in descendants(os.getpid()))
        return total

    def round(self) -> None:
        """Called at the end of each round."""
        self.marks.append((self._since_spawned(), self._processor_s()))
        if self.tree:
            pids = [os.getpid(), *descendants(os.getpid())]
            self.resident = max(self.resident, sum(resident_mb(pid) for pid in pids))

    def finish(self, theta: Array, *packages: str, **more: Any) -> None:
        """Keep θ, and print what was measured."""
        np.save(sys.argv[2], np.asarray(theta, np.float64))
        (first_s, first_cpu_s), (_, last_cpu_s) = self.marks[0], self.marks[-1]
        walls = np.diff([wall for wall, _ in self.marks])
        report = {
            "import_s": self.imported_s,
            "import_cpu_s": self.imported_cpu_s,
            "first_round_s": first_s,
            "first_round_cpu_s": first_cpu_s,
            "rounds": len(self.marks),
            "round_wall_s": float(np.median(walls)),
            "round_cpu_s": (last_cpu_s - first_cpu_s) / (len(self.marks) - 1),
            "rss_peak_mb": self.resident or resident_mb(os.getpid(), "VmHWM"),
            "versions": {name: version(name) for name in packages},
            **more,
        }
        print(json.dumps(report), flush=True)


def given() -> Work:
    """The work that this script was started with."""
    return read_work(Path(sys.argv[1]))
