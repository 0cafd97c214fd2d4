"""A federation of real processes that tests kill, stop, cut off and start again."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from broker.local.broker import HOST
from broker.local.child_process import bound_to_parent
from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.storage.store import Store
from edge_agent.config import AgentConfig
from edge_agent.data.dataset import load_dataset
from edge_agent.training.trainer import train
from fedge.yaml_config import parse_config
from learning.vector.parameters import F32
from models.runtime.program import Program
from models.runtime.rows import row_count
from models.zoo import load_zoo

ROOT = Path(__file__).parents[2]
HOUSING = ROOT / "examples" / "data" / "housing_california.npz"
#: Back-offs of seconds, and not of minutes as in the field.
_PATIENCE = {"backoff_min_s": 0.1, "backoff_max_s": 0.5, "keepalive_s": 2}
#: A round takes some 0.2 s: long enough to be hit, short enough to see many.
TRAINING = {"epochs": 1500, "batch_size": 0, "optimizer": "sgd", "learning_rate": 0.0005}

#: Rows of an agent: inputs and target.
Rows = tuple[Any, Any]


def housing_rows(agents: int, rows: int = 300) -> list[Rows]:
    """Real houses, dealt out evenly; each agent gets a few more than the one before."""
    with np.load(HOUSING) as file:
        x, y = file["x"], file["y"]
    starts = [number * rows for number in range(agents + 1)]
    return [
        (x[start : start + rows + 10 * number], y[start : start + rows + 10 * number])
        for number, start in enumerate(starts[:-1])
    ]


@dataclass
class Federation:
    """Configurations in a folder, and the processes that run them.

    Attributes:
        folder: of everything.
        port: of the broker.
        names: of the agents.
        coordinator: what its configuration says beyond the usual.
        agent: the same of every agent.
        broker: further keys of everybody's `broker`.
        verbose: whether the processes log everything.
        model: of the zoo.
    """

    folder: Path
    port: int = 0
    names: Sequence[str] = ("pi-0", "pi-1", "pi-2")
    coordinator: dict[str, Any] = field(default_factory=dict)
    agent: dict[str, Any] = field(default_factory=dict)
    broker: dict[str, Any] = field(default_factory=dict)
    verbose: bool = False
    model: str = "house_price"
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def write(self, rows: Sequence[Rows] | None = None) -> Federation:
        """Writes configurations and rows."""
        spec = load_zoo(self.model).spec
        rows = housing_rows(len(self.names)) if rows is None else rows
        scale = 1e-5 if self.model == "house_price" else 1.0
        for name, (x, y) in zip(self.names, rows, strict=True):
            own = self.folder / name
            own.mkdir(parents=True, exist_ok=True)
            np.savez(own / "rows.npz", x=x, y=y)
            data = {
                "path": "rows.npz",
                "inputs": {spec.inputs[0].name: {"array": "x"}},
                "target": {"array": "y", "scale": scale},
                "test_fraction": 0.1,
            }
            settings = {"federation": "f", "agent_id": name, "data": data, **self.agent}
            self.configure(name, broker=self.at(self.port), **settings)
        count = len(self.names)
        settings = {
            "federation": "f",
            "model": self.model,
            "codec": {"name": "float32"},
            "training": TRAINING,
            "cohort": {"at_least": count},
            "round": {"minimum": count, "deadline_s": 30},
            "evaluation": {"every": 0},
            "keep_versions": 0,
        }
        self.configure("coordinator", broker=self.at(self.port), **(settings | self.coordinator))
        return self

    def at(self, port: int) -> dict[str, Any]:
        """The broker section of a configuration."""
        return {"host": HOST, "port": port, **_PATIENCE, **self.broker}

    def configure(self, name: str, **settings: Any) -> None:
        """Writes the configuration of one process; keys that are not given stay."""
        path = self.config(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self.settings(name) if path.exists() else {}
        path.write_text(yaml.safe_dump(before | settings))

    def settings(self, name: str) -> dict[str, Any]:
        """What the configuration of one process says."""
        document: dict[str, Any] = yaml.safe_load(self.config(name).read_text())
        return document

    def config(self, name: str) -> Path:
        """Configuration file of the coordinator or an agent."""
        kind = "coordinator" if name == "coordinator" else "agent"
        return self.folder / name / f"{kind}.yaml"

    def state(self, name: str) -> Path:
        """Its state folder."""
        return self.folder / name / "state"

    def start(self, *names: str, config: Path | None = None) -> None:
        """Starts processes; their logs grow with every start."""
        for name in names:
            kind = "coordinator" if name.startswith("coordinator") else "agent"
            path = config or self.config(name)
            command = bound_to_parent(os.getpid())
            command += [*self.fedge(name), kind, "run", "--config", str(path)]
            command += ["--json"] if kind == "coordinator" else []
            command += ["-v"] if self.verbose else []
            log = self.folder / f"{name}.log"
            with log.open("ab") as err, (self.folder / f"{name}.out").open("ab") as out:
                self._running[name] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )

    def fedge(self, name: str) -> list[str]:
        """What runs `fedge` as the process of that name, by absolute path."""
        return [sys.executable, "-P", "-m", "fedge"]

    def start_all(self) -> None:
        """The coordinator and every agent."""
        self.start("coordinator", *self.names)

    def pid(self, name: str) -> int:
        """Of a process that runs."""
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """`kill -9`."""
        self._running[name].kill()
        self._running.pop(name).wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal."""
        self._running[name].send_signal(number)

    def ended(self, name: str, timeout_s: float = 80.0) -> int:
        """The exit code of a process that ends by itself."""
        try:
            code = self._running[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} still runs after {timeout_s:g} s: {self.said(name)[-2000:]}")
        del self._running[name]
        return code

    def said(self, name: str) -> str:
        """The log of a process, over all its starts."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """Ends what runs, also what is stopped (SIGSTOP)."""
        for child in self._running.values():
            child.kill()
        for child in self._running.values():
            child.wait()
        self._running.clear()

    def version(self) -> int:
        """The newest committed version; -1 before there is a store."""
        path = self.state("coordinator") / "federation.sqlite"
        if not path.exists():
            return -1
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                found = db.execute("SELECT max(version) FROM versions").fetchone()[0]
        except sqlite3.OperationalError:
            return -1  # being created
        return -1 if found is None else int(found)

    def await_version(self, version: int, timeout_s: float = 30.0) -> None:
        """Waits until it is committed."""
        eventually(
            f"version {version}",
            lambda: self.version() >= version,
            timeout_s,
            lambda: self.said("coordinator")[-2000:],
        )

    def told(self, event: str) -> list[dict[str, Any]]:
        """What the coordinator told on its stdout, of one kind."""
        lines = (self.folder / "coordinator.out").read_text().splitlines()
        # A process that is killed while it writes leaves half a line.
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return [line for line in whole if line["event"] == event]

    def records(self) -> list[RoundRecord]:
        """Of all rounds, from the store."""
        store = Store.open_existing(self.state("coordinator"))
        try:
            return store.rounds()
        finally:
            store.close()

    def theta(self, version: int) -> F32:
        """A committed version."""
        path = self.state("coordinator") / "federation.sqlite"
        with closing(sqlite3.connect(path)) as db:
            query = "SELECT theta FROM versions WHERE version = ?"
            blob = db.execute(query, (version,)).fetchone()[0]
        return np.frombuffer(blob, "<f4").astype(np.float32)

    def versions(self) -> list[int]:
        """Of θ in the store."""
        store = Store.open_existing(self.state("coordinator"))
        try:
            return store.versions()
        finally:
            store.close()

    def expected_theta(self, rounds: int) -> F32:
        """θ of a run that nothing disturbs: every agent counts once in every round."""
        package = load_zoo(self.model)
        config = parse_config(self.settings("coordinator"), CoordinatorConfig, "coordinator")
        program = Program(package.program, package.spec)
        parts = [self._training_rows(name) for name in self.names]
        theta = package.initial.copy()
        for _ in range(rounds):
            total = np.zeros(len(theta))
            for part in parts:
                rng = np.random.default_rng(0)  # full batches: the order of rows is no matter
                result = train(program, theta, part, config.training, rng)
                total += result.delta.astype(np.float64) * result.num_examples
            theta = theta + (total / sum(map(row_count, parts))).astype(np.float32)
        return theta

    def _training_rows(self, name: str) -> Any:
        config = parse_config(self.settings(name), AgentConfig, name)
        return load_dataset(config.data, load_zoo(self.model).spec, self.folder / name).part(
            "train"
        )

    def check_nothing_lost(self, rounds: int) -> None:
        """Each of `rounds` versions was committed once, of everybody's update, and θ is right."""
        assert self.versions() == list(range(rounds + 1))
        records = self.records()
        committed = [record for record in records if record.status == "committed"]
        assert [record.version for record in committed] == list(range(1, rounds + 1))
        assert len({record.round_id for record in records}) == len(records)
        for record in committed:
            assert record.reported == record.asked == len(self.names)
            assert set(record.agents) == set(self.names)
        self.check_theta(rounds)

    def check_theta(self, rounds: int) -> None:
        """θ is what a run of these agents that nothing disturbs comes to."""
        np.testing.assert_allclose(
            self.theta(rounds), self.expected_theta(rounds), rtol=0, atol=1e-6
        )


@contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    """The federation, whose processes do not outlive the block."""
    try:
        yield federation
    finally:
        federation.stop()


def children_of(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == pid:
                    found.append(int(entry.name))
    return found


def eventually(
    what: str,
    found: Callable[[], Any],
    timeout_s: float = 30.0,
    context: Callable[[], str] = str,
) -> Any:
    """The first true answer."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if answer := found():
            return answer
        time.sleep(0.02)
    pytest.fail(f"not within {timeout_s:g} s: {what}\n{context()}")


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own in `folder`, which is soon full. Skips where nobody may mount."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes},mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "fedge-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        reason = f"mounting is not allowed here: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield folder
    finally:
        # Lazily: a process that was just killed may hold it for a moment.
        subprocess.run(["umount", "-l", str(folder)], timeout=10, check=True)


def fill(path: Path) -> None:
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        block = io.BytesIO(bytes(4096)).getbuffer()
        while True:
            try:
                file.write(block)
            except OSError:
                return
