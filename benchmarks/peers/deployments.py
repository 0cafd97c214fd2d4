"""Two real clients on this machine: Flower's SuperLink and SuperNodes, and fedge over Mosquitto.

The clients' bytes pass a relay that counts them. Everything is on loopback and without TLS.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from environments import Environments, NotInstalled
from measure import Report, spread
from measured import Work, descendants, processor_s
from processes import Sampler, end_tree, environment
from relay import HOST, Relay
from work import PREFIX, TOLERANCE, distance, reference, write_scenario, write_work

from broker.local.broker import LocalBroker

TASKS = Path(__file__).parent / "tasks"
CLIENTS = 2
#: Flower polls: a round takes six seconds.
FLOWER_ROUNDS = 5
FEDGE_ROUNDS = 60
PATIENCE_S = 150
_APP = ("flower_client.py", "flower_server.py", "mlp.py", "measured.py")
_APP_FILE = """
[project]
name = "peers"
version = "1.0.0"
description = "The work of benchmarks/peers"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "peers"
[tool.flwr.app.components]
serverapp = "flower_server:app"
clientapp = "flower_client:app"
[tool.flwr.app.config]
work = ""
out = ""
"""
_CONNECTION = """
[superlink]
default = "bench"
[superlink.bench]
address = "{host}:{port}"
insecure = true
"""


class Processes:
    """Processes of one deployment; all are ended on leaving.

    Attributes:
        folder: for their files.
        began: when the first was started.
    """

    def __init__(self, folder: Path, python: Path, **variables: str) -> None:
        self.folder = folder
        self.began = time.monotonic()
        self._python = python
        self._environment = environment(python, **variables)
        self._stack = ExitStack()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a command of the environment; its output goes to a log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._python.parent / command[0]), *command[1:]],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._stack.callback(end_tree, process)
        return process

    def wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Waits for its end.

        Raises:
            RuntimeError: it failed, or took too long.
        """
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{name} took more than {PATIENCE_S} s") from None
        if code:
            lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"{name}: {(lines or ['no message'])[-1][:300]}")


def run_flower(folder: Path, work: Work, environments: Environments) -> Report:
    """A SuperLink, two SuperNodes, and one run."""
    python = environments.python("superlink")
    port, *ports = _free_ports(1 + CLIENTS)
    _write_app(folder, port)
    roots: dict[str, int] = {}
    at_first: dict[str, float] = {}
    with ExitStack() as stack:
        relays = []
        for client in range(CLIENTS):
            name = f"client {client}"

            def first(_head: bytes, name: str = name) -> None:
                at_first.setdefault(name, _processor_s(_tree(roots[name])))

            relays.append(stack.enter_context(Relay(port, first)))
        processes = stack.enter_context(Processes(folder, python, FLWR_HOME=str(folder)))
        where = ["--insecure", "--host", HOST]
        link = ["--disable-runtime-dependency-installation", "--port", str(port)]
        roots["server"] = processes.start("superlink", "flower-superlink", *where, *link).pid
        for client, (relay, own) in enumerate(zip(relays, ports, strict=True)):
            node = ["--superlink", f"{HOST}:{relay.port}", "--port", str(own)]
            node += ["--node-config", f"partition-id={client}"]
            started = processes.start(f"supernode-{client}", "flower-supernode", *where, *node)
            roots[f"client {client}"] = started.pid
        with _sampled(lambda: {name: _tree(pid) for name, pid in roots.items()}) as sampler:
            _wait_for(port)
            config = f'work="{work.path}" out="{folder / "theta"}"'
            run = ["run", str(folder / "app"), "bench", "--stream", "--run-config", config]
            processes.wait("run", processes.start("run", "flwr", *run))
        marks = json.loads(_there(folder / "theta.json").read_text())
        wire = [relay.between(marks[0], marks[-1]) for relay in relays]
        theta = np.load(folder / "theta.npy")
    found = _figures(processes.began, marks, wire, sampler, at_first)
    return found | {"theta": theta, "versions": {"flwr": _version(python, "flwr")}}


def run_fedge(folder: Path, work: Work, environments: Environments) -> Report:
    """Mosquitto, a coordinator's process and two agents' processes, as `fleet run` starts them."""
    environments.python("fedge")  # its size: what a device has
    python = environments.python("fedge_fleet")
    write_scenario(folder, work)
    names = [f"{PREFIX}-{client}" for client in range(CLIENTS)]
    at_first: dict[str, float] = {}
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(folder, python))
        broker = stack.enter_context(LocalBroker("mosquitto"))

        def groups() -> Mapping[str, list[int]]:
            found: dict[str, list[int]] = {"broker": [broker.pid]}
            for pid in descendants(run.pid):
                if role := _role(pid, names):
                    found.setdefault(role, []).append(pid)
            return found

        def first(head: bytes) -> None:
            for client, name in enumerate(names):
                if name.encode() in head:
                    at_first.setdefault(
                        f"client {client}", _processor_s(groups()[f"client {client}"])
                    )

        relay = stack.enter_context(Relay(broker.port, first))
        script = str(TASKS / "fedge_fleet.py")
        result = folder / "theta.npy"
        arguments = [script, str(work.path), str(result), str(relay.port)]
        run = processes.start("run", "python", *arguments)
        with _sampled(groups) as sampler:
            processes.wait("run", run)
        output = (folder / "run.log").read_text().strip().splitlines()[-1]
        told = json.loads(output)
        marks = told["marks"]
        wire = [relay.between(marks[0], marks[-1], name.encode()) for name in names]
    found = _figures(processes.began, marks, wire, sampler, at_first)
    rounds = CLIENTS * (len(marks) - 1)
    counted = [sum(way) / rounds for way in zip(*told["counted"][1:], strict=True)]
    return found | {
        "theta": np.load(result),
        "own_count": {"up": counted[0], "down": counted[1]},
        "versions": told["versions"],
    }


def _figures(
    began: float,
    marks: list[float],
    wire: list[tuple[int, int]],
    sampler: Sampler,
    at_first: Mapping[str, float],
) -> Report:
    rounds = len(marks) - 1
    clients = [f"client {client}" for client in range(CLIENTS)]
    used = sum(sampler.used_s(name, marks[0], marks[-1]) for name in clients)
    return {
        "first_round_s": marks[0] - began,
        "round_s": (marks[-1] - marks[0]) / rounds,
        "bytes_up": sum(up for up, _ in wire) / (CLIENTS * rounds),
        "bytes_down": sum(down for _, down in wire) / (CLIENTS * rounds),
        "client_cpu_s": used / (CLIENTS * rounds),
        "connect_cpu_s": max(at_first.values()),
        "client_rss_mb": max(sampler.peak[name] for name in clients),
        "server_rss_mb": sum(sampler.peak.get(name, 0.0) for name in ("server", "broker")),
        "rss_mb": {key: mb for key, mb in sampler.programs.items() if not key.endswith(": ended")},
        "rounds": rounds + 1,
    }


DEPLOYMENTS: dict[str, Any] = {
    "flower-superlink": (
        "Flower SuperLink, two SuperNodes",
        run_flower,
        FLOWER_ROUNDS,
        "superlink",
    ),
    "fedge-fleet": ("fedge fleet run, two agents, Mosquitto", run_fedge, FEDGE_ROUNDS, "fedge"),
}
FIGURES = (
    "first_round_s",
    "round_s",
    "bytes_up",
    "bytes_down",
    "client_cpu_s",
    "connect_cpu_s",
    "client_rss_mb",
    "server_rss_mb",
)


def deploy(names: list[str], folder: Path, environments: Environments, repeats: int) -> Report:
    """Runs the named deployments in turn: their figures, or why there are none."""
    runs: dict[str, list[Report]] = {name: [] for name in names}
    reasons: dict[str, str] = {}
    for repeat in range(repeats):
        for name in names:
            if name in reasons:
                continue
            print(f"{name}, {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
            _, run, rounds, _ = DEPLOYMENTS[name]
            own = folder / name
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            try:
                work = write_work(own / "work.npz", CLIENTS, rounds)
                found = run(own, work, environments)
                found["distance"] = distance(work, reference(work), found.pop("theta"))
                runs[name].append(found)
            except (NotInstalled, RuntimeError) as error:
                reasons[name] = str(error)
    return {
        name: {"title": DEPLOYMENTS[name][0], "not_run": reasons[name]}
        if name in reasons
        else _summary(name, runs[name], environments)
        for name in names
    }


def _summary(name: str, runs: list[Report], environments: Environments) -> Report:
    title, _, _, installed = DEPLOYMENTS[name]
    farthest = max(run["distance"] for run in runs)
    more: Report = {key: runs[-1][key] for key in ("rss_mb", "own_count") if key in runs[-1]}
    return {
        "title": title,
        **{key: spread(run[key] for run in runs) for key in FIGURES},
        **more,
        "rounds": runs[0]["rounds"],
        "distance": farthest,
        "same": farthest <= TOLERANCE,
        "installed_mb": environments.installed[installed]["mb"],
        "versions": runs[0]["versions"],
    }


def _write_app(folder: Path, port: int) -> None:
    app = folder / "app"
    app.mkdir()
    for name in _APP:
        shutil.copy(TASKS / name, app / name)
    (app / "pyproject.toml").write_text(_APP_FILE)
    (folder / "config.toml").write_text(_CONNECTION.format(host=HOST, port=port))


@contextmanager
def _sampled(groups: Any) -> Iterator[Sampler]:
    sampler = Sampler(groups)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def _role(pid: int, names: list[str]) -> str:
    """Group of a process of `fleet run`; nothing for others."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    for client, name in enumerate(names):
        if f"/{name}" in words:
            return f"client {client}"
    return "server" if "coordinator" in words else ""


def _tree(pid: int) -> list[int]:
    return [pid, *descendants(pid)]


def _processor_s(pids: list[int]) -> float:
    return sum(processor_s(pid) for pid in pids)


def _free_ports(number: int) -> list[int]:
    listeners = [socket.create_server((HOST, 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _wait_for(port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port} after {PATIENCE_S} s")


def _there(path: Path) -> Path:
    """A file that the run must have written."""
    if not path.exists():
        raise RuntimeError("the run ended without a result")
    return path


def _version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()
