"""Fleets of any size for the benchmarks of simulations with cohorts: drawn rows, a package here."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import yaml

from coordinator.records.records import RoundRecord
from fleet.batched.simulate import How, Simulated, simulate_fleet
from fleet.runs.prepared import Prepared, prepare
from fleet.virtual.profiles import DeviceProfile, Profiles

HERE = Path(__file__).parent
ZOO = HERE.parent / "models" / "zoo" / "packages"
#: Rows that agents draw theirs from, with replacement.
TABLE_ROWS = 20_000
ROWS, BATCH = 16, 8
PROFILES = Profiles(profiles={"device": DeviceProfile()})


class Rounds:
    """Told what happens; notes processor and wall seconds at the end of each round.

    Processor time is that of this process and of the processes that it has waited for.
    """

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.wall_s = [time.perf_counter()]
        self.processor_s = [time.process_time()]

    def round(self, record: RoundRecord) -> None:
        self.records.append(record)
        self.wall_s.append(time.perf_counter())
        self.processor_s.append(time.process_time())

    def note(self, text: str) -> None: ...
    def working(self, what: str, done: int, of: int) -> None: ...

    def per_round(self, seconds: list[float]) -> list[float]:
        """Returns the seconds of each round; the first has the start of everything in it."""
        return [after - before for before, after in pairwise(seconds)]


@contextmanager
def fleet(
    model: str, agents: int, rounds: int, codec: str = "float32", **federation: object
) -> Iterator[tuple[Prepared, Path]]:
    """Gives a fleet of agents with 16 rows each that make 2 steps in a round, and a folder.

    Args:
        model: a folder beside this file, or a model of the zoo.
        agents: number of agents.
        rounds: number of rounds.
        codec: of the updates.
        federation: other keys of the federation, and `test_fraction`.
    """
    package = HERE / model if (HERE / model).is_dir() else ZOO / model
    spec = msgspec.json.decode((package / "spec.json").read_bytes())
    (column,) = spec["inputs"]
    shape, classes = column["shape"], 10
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = rng.random((TABLE_ROWS, *shape), dtype=np.float32)
        labels = rng.integers(0, classes, TABLE_ROWS, dtype=np.int32)
        np.savez(Path(folder) / "rows.npz", x=rows, y=labels)
        scenario = {
            "name": "cohorts",
            "description": "drawn rows",
            "licence": "none",
            "data": {
                "path": "rows.npz",
                "inputs": {column["name"]: {"array": "x"}},
                "target": {"array": "y"},
                "test_fraction": federation.pop("test_fraction", 0.0),
            },
            "partition": {"kind": "sample", "clients": agents, "rows": ROWS},
            "federation": {
                "model": str(package),
                "rounds": rounds,
                "training": {"epochs": 1, "batch_size": BATCH, "learning_rate": 0.1},
                "codec": codec,
                "aggregator": "mean",
                "evaluation": {"every": 0},
                **federation,
            },
        }
        path = Path(folder) / "scenario.yaml"
        path.write_text(yaml.safe_dump(scenario))
        yield prepare(path, {}), Path(folder) / "run"


def simulate(prepared: Prepared, how: How, folder: Path, rounds: Rounds) -> Simulated:
    """Simulates a fleet; `rounds` has its figures."""
    return simulate_fleet(prepared, PROFILES, how, folder, rounds)


class Family:
    """Watches this process and all below it, twice a second.

    Attributes:
        largest_bytes: memory of all of them together (proportional set size: what is shared counts
            once).
    """

    def __init__(self) -> None:
        self.largest_bytes = 0
        self._processor_s: dict[int, float] = {}
        self._before_s = _processor_s(os.getpid())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def processor_s(self) -> float:
        """Processor seconds of all of them; up to half a second of each is missing."""
        return sum(self._processor_s.values()) - self._before_s

    def __enter__(self) -> Family:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._processor_s[os.getpid()] = _processor_s(os.getpid())
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            family = _family(os.getpid())
            self._processor_s |= {process: _processor_s(process) for process in family}
            self.largest_bytes = max(self.largest_bytes, sum(map(_own_bytes, family)))


def _family(process: int) -> list[int]:
    """Returns a process and all below it."""
    found, todo = [], [process]
    while todo:
        found.append(todo.pop())
        try:
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it has ended
    return found


def _processor_s(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
