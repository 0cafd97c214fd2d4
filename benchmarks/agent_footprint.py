"""An agent process beside the least that could do its job: memory, start-up, installed size.

    python benchmarks/agent_footprint.py [--repeats 7] [--rounds 5] [--long 10000] [--no-install]
                                         [--json] [--save]

Everything is real: Mosquitto on loopback, a coordinator process, an agent process that learns
wearable_activity on one wearer's data. They run from a fresh virtual environment with nothing but
the base dependencies, as on a device (with --no-install: from the present one). The floor is a
process that imports paho-mqtt, numpy and the TFLite interpreter and connects.

Start-up runs from the spawning of the process to the arrival of its retained birth message at a
subscriber; memory is VmRSS and VmHWM (the peak) of /proc once all rounds are over. TLS and LiteRT
are measured beside, in one repeat of three. With --long one more federation of as many short rounds
follows (two steps, then an evaluation): the memory is flat when a line through its second half
rises or falls by at most 2 % of the mean.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import Report, Spread, budget, finish, option_parser, shown, spread
from soak import FLAT, drift
from transports import make_broker

from broker.link.link import LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "data" / "har_watch.npz"
FEDERATION, AGENT = "footprint", "wearer-0"
PREFIX = f"fedge/v1/{FEDERATION}"
PATIENCE_S = 60.0
MB = 1_000_000

#: The least: connects, and says that it is there on the agent's own topic.
FLOOR = """
import socket, sys, time
import numpy, paho.mqtt.client as paho
try:
    import tflite_runtime.interpreter
except ImportError:
    import ai_edge_litert.interpreter
def no_delay(client, data, sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def connected(client, *_):
    client.publish(sys.argv[2], b'{"state":"online"}', 1, True)
client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
client.on_socket_open, client.on_connect = no_delay, connected
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
time.sleep(60)
"""


class Watcher:
    """A subscriber that says when a message came."""

    def __init__(self, broker: LocalBroker) -> None:
        self.link = MqttLink(broker.settings, "footprint-watcher")
        for topic in ("agents/+/status", "coordinator/status"):
            self.link.subscribe(f"{PREFIX}/{topic}")
        self.link.open()
        self.wait(lambda event: isinstance(event, LinkUp))

    def wait(self, wanted: Callable[[Any], bool]) -> float:
        """The moment of the first event that is wanted."""
        until = time.perf_counter() + PATIENCE_S
        while time.perf_counter() < until:
            event = self.link.poll(1.0)
            if event is not None and wanted(event):
                return time.perf_counter()
        raise TimeoutError("nothing came")

    def wait_status(self, tail: str, key: str, value: object = None) -> float:
        """The moment a status has `key`, or has it with this value; other than false."""

        def wanted(event: Any) -> bool:
            if not isinstance(event, Received) or event.topic != f"{PREFIX}/{tail}":
                return False
            found = json.loads(event.payload).get(key) if event.payload else None
            return bool(found) if value is None else found == value

        return self.wait(wanted)

    def forget(self) -> None:
        """Clear the retained status, so that the next birth is the first message."""
        self.link.publish(f"{PREFIX}/agents/{AGENT}/status", b"", retain=True)
        self.wait(lambda event: isinstance(event, Received) and not event.payload)


def memory(pid: int) -> dict[str, float]:
    """MB of VmRSS, VmHWM and what of it is private to the process."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in ("VmRSS", "VmHWM", "RssAnon"):
            found[key] = int(rest.split()[0]) * 1024 / MB
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop one of our processes."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def write_configs(folder: Path, transports: dict[str, dict[str, Any]], rounds: int) -> None:
    """One wearer's agent, the same with TLS, and a coordinator that waits for either."""
    settings = transports["tcp"]
    with np.load(DATA) as file:
        rows = file["client"] == 0
        np.savez(folder / "data.npz", x=file["x"][rows], y=file["y"][rows])
    agent = {
        "federation": FEDERATION,
        "agent_id": AGENT,
        "broker": settings,
        "data": {
            "path": "data.npz",
            "inputs": {"window": {"array": "x"}},
            "target": {"array": "y"},
        },
    }
    coordinator = {
        "federation": FEDERATION,
        "model": "wearable_activity",
        "broker": settings,
        "rounds": rounds,
        "start": {"agents": 1, "timeout_s": PATIENCE_S},
        "training": {"epochs": 2, "batch_size": 32, "optimizer": "adam", "learning_rate": 0.002},
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(agent))
    (folder / "tls.yaml").write_text(yaml.safe_dump(agent | {"broker": transports["mutual"]}))
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(coordinator))


def make_rounds_short(folder: Path, rounds: int) -> None:
    """Two steps a round, and many rounds."""
    path = folder / "coordinator.yaml"
    coordinator = yaml.safe_load(path.read_text())
    coordinator["training"] |= {"epochs": 1, "max_steps": 2, "learning_rate": 1e-4}
    path.write_text(yaml.safe_dump(coordinator | {"rounds": rounds}))


class Bench:
    """One broker, and processes that come and go."""

    def __init__(self, python: str, broker: LocalBroker, folder: Path) -> None:
        self.python = python
        self.broker = broker
        self.folder = folder
        self.watcher = Watcher(broker)

    def fedge(self, part: str, file: str = "") -> list[str]:
        """The command that runs an agent or a coordinator."""
        config = str(self.folder / f"{file or part}.yaml")
        return [self.python, "-P", "-m", "fedge", part, "run", "--config", config]

    def spawn(self, command: list[str], runtime: str = "") -> subprocess.Popen[bytes]:
        environment = os.environ | ({"FEDGE_RUNTIME": runtime} if runtime else {})
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def birth(self, command: list[str]) -> dict[str, float]:
        """Seconds from the spawning to the birth, and the memory then."""
        self.watcher.forget()
        started = time.perf_counter()
        process = self.spawn(command)
        try:
            born = self.watcher.wait_status(f"agents/{AGENT}/status", "state", "online")
            return {"seconds": born - started, **memory(process.pid)}
        finally:
            end(process)

    def floor(self) -> dict[str, float]:
        """The least that could do."""
        topic = f"{PREFIX}/agents/{AGENT}/status"
        return self.birth([self.python, "-P", "-c", FLOOR, str(self.broker.port), topic])

    def bare(self) -> float:
        """Seconds that a Python takes which does nothing, from spawning to its end."""
        started = time.perf_counter()
        end_of = self.spawn([self.python, "-P", "-c", "pass"])
        end_of.wait(PATIENCE_S)
        return time.perf_counter() - started

    def train(self, file: str = "agent", runtime: str = "") -> dict[str, float]:
        """A whole federation: the agent's memory when it is over, and when it was ready."""
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        self.watcher.forget()
        with ExitStack() as stack:
            coordinator = self.spawn(self.fedge("coordinator"))
            stack.callback(end, coordinator)
            self.watcher.wait_status("coordinator/status", "state", "online")
            started = time.perf_counter()
            agent = self.spawn(self.fedge("agent", file), runtime)
            stack.callback(end, agent)
            born = self.watcher.wait_status(f"agents/{AGENT}/status", "state", "online")
            ready = self.watcher.wait_status(f"agents/{AGENT}/status", "train_examples")
            if coordinator.wait(PATIENCE_S):
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            return {
                "seconds": born - started,
                "ready_seconds": ready - started,
                **memory(agent.pid),
            }

    def train_long(self) -> dict[str, float]:
        """A federation of many rounds: MB of the agent, every second."""
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        self.watcher.forget()
        found: list[float] = []
        with ExitStack() as stack:
            coordinator = self.spawn(self.fedge("coordinator"))
            stack.callback(end, coordinator)
            agent = self.spawn(self.fedge("agent"))
            stack.callback(end, agent)
            while coordinator.poll() is None:
                time.sleep(1.0)
                found.append(memory(agent.pid)["VmRSS"])
        if coordinator.returncode or len(found) < 20:
            raise RuntimeError((self.folder / "log").read_text()[-2000:])
        half = len(found) // 2
        return {
            "seconds": float(len(found)),
            "after_a_minute": found[min(60, half)],
            "half": found[half],
            "last": found[-1],
            "drift": drift([*map(float, range(half, len(found)))], found[half:]),
        }


def make_environment(folder: Path) -> tuple[str, dict[str, float]]:
    """A fresh environment with the base dependencies: its python, and MB of its parts."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install(python, str(ROOT))
    (site,) = folder.glob("lib/python*/site-packages")
    ours = ("broker", "coordinator", "edge_agent", "fleet", "models", "learning", "fedge")
    parts = {
        "all": disk_bytes(folder),
        "pip and setuptools": sum(disk_bytes(site / name) for name in ("pip", "setuptools")),
        "numpy": sum(disk_bytes(path) for path in site.glob("numpy*")),
        "interpreter": sum(
            disk_bytes(path)
            for name in ("tflite_runtime", "ai_edge_litert")
            for path in site.glob(f"{name}*")
        ),
        "fedge itself": sum(disk_bytes(site / name) for name in ours),
    }
    install(python, "ai-edge-litert")  # measured beside, and not part of an agent here
    return str(python), {name: size / MB for name, size in parts.items()}


def install(python: Path, what: str) -> None:
    """Installs one distribution with pip, in the versions of the constraints."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["-c", str(ROOT / "constraints.txt"), what]
    subprocess.run(command, check=True, timeout=600, stderr=subprocess.DEVNULL)


def disk_bytes(path: Path) -> int:
    """Blocks taken, as `du` counts."""
    if not path.exists():
        return 0
    done = subprocess.run(["du", "-sk", str(path)], capture_output=True, check=True, timeout=60)
    return int(done.stdout.split()[0]) * 1024


def measure(python: str, repeats: int, rounds: int, long: int) -> Report:
    """Floor, agent and whole federation in turn; others beside them."""
    floors: list[dict[str, float]] = []
    births: list[dict[str, float]] = []
    trained: list[dict[str, float]] = []
    bare: list[float] = []
    beside: dict[str, list[dict[str, float]]] = {"TLS": [], "LiteRT": [], "LiteRT, TLS": []}
    with tempfile.TemporaryDirectory(prefix="footprint-") as name, ExitStack() as stack:
        keys = Path(name) / "keys"
        keys.mkdir()
        Path(name).chmod(0o755)  # the broker may run as another user
        broker, transports = make_broker(keys)
        stack.enter_context(broker)
        bench = Bench(python, broker, Path(name))
        write_configs(bench.folder, transports, rounds)
        bench.floor()  # files in the page cache
        for _ in range(repeats):
            bare.append(bench.bare())
            floors.append(bench.floor())
            births.append(bench.birth(bench.fedge("agent")))
            trained.append(bench.train())
        for _ in range(-(-repeats // 3)):
            beside["TLS"].append(bench.train("tls"))
            beside["LiteRT"].append(bench.train("agent", "ai-edge-litert"))
            beside["LiteRT, TLS"].append(bench.train("tls", "ai-edge-litert"))
        report: Report = {}
        if long:
            make_rounds_short(bench.folder, long)
            report["long"] = {"rounds": long, **bench.train_long()}
        bench.watcher.link.close()
    return report | {
        "bare_python_seconds": spread(bare),
        "floor": _spreads(floors),
        "agent_connected": _spreads(births),
        "agent_trained": _spreads(trained),
        "beside": {name: _spreads(rows) for name, rows in beside.items()},
    }


def _spreads(rows: list[dict[str, float]]) -> dict[str, Spread]:
    return {key: spread(row[key] for row in rows) for key in rows[0]}


def show(report: Report) -> None:
    """One table."""
    print(f"{'':<34}{'start, s':>20}{'VmRSS, MB':>20}{'VmHWM, MB':>20}")
    names = {
        "floor": "paho + numpy + interpreter",
        "agent_connected": "agent, connected",
        "agent_trained": "agent, after training",
    }
    for key, name in names.items():
        row = report[key]
        print(
            f"{name:<34}{shown(row['seconds'], digits=2):>20}"
            f"{shown(row['VmRSS']):>20}{shown(row['VmHWM']):>20}"
        )
    print(f"{'python -c pass':<34}{shown(report['bare_python_seconds'], digits=2):>20}")
    for name, row in report["beside"].items():
        print(
            f"{f'agent, after training, {name}':<34}{shown(row['seconds'], digits=2):>20}"
            f"{shown(row['VmRSS']):>20}{shown(row['VmHWM']):>20}"
        )
    ready = shown(report["agent_trained"]["ready_seconds"], digits=2)
    print(f"{'agent, model and data loaded':<34}{ready:>20}")
    if long := report.get("long"):
        print(
            f"{long['rounds']:,} rounds in {long['seconds']:,.0f} s: "
            f"{long['after_a_minute']:.2f} MB after a minute, {long['half']:.2f} at half-time, "
            f"{long['last']:.2f} at the end, drift {long['drift']:+.2%}"
        )
    for name, size in report["installed_mib"].items():
        print(f"installed, {name:<23}{size:>20.1f} MB")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5, help="of each federation")
    parser.add_argument("--long", type=int, default=0, help="rounds of one more federation")
    parser.add_argument("--no-install", action="store_true", help="use the present environment")
    options = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="footprint-venv-") as name:
        python = sys.executable
        sizes: dict[str, float] = {}
        if not options.no_install:
            python, sizes = make_environment(Path(name) / "venv")
        report = measure(python, options.repeats, options.rounds, options.long)
    report["installed_mib"] = sizes
    trained, births = report["agent_trained"], report["agent_connected"]
    report["budgets"] = [
        budget(trained["VmRSS"]["median"], 58, "MB of RSS after training"),
        budget(births["seconds"]["median"], 0.3, "seconds from start to connected"),
    ]
    if "long" in report:
        what = f"drift of the memory over the second half of {options.long:,} rounds"
        report["budgets"].append(budget(abs(report["long"]["drift"]), FLAT, what))
    if sizes:
        kept = sizes["all"] - sizes["pip and setuptools"]
        report["budgets"].append(budget(kept, 110, "MB installed, without pip and setuptools"))
    finish("agent_footprint", report, options, show)


if __name__ == "__main__":
    main()
