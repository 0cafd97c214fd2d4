"""Many real agents on one machine: rounds with a thousand, and how fast five thousand connect.

    python benchmarks/many_agents.py [--agents 1000] [--rounds 6] [--connect 5000] [--json] [--save]

Everything is what `fedge fleet run` starts: real Mosquitto, the coordinator's process, agents in
one host process a core. The model is `dense_10000/` (100-90-10, P = 10,000); every agent has 40
rows of its own made-up data, trains one epoch (two steps) and measures every new θ on its held-out
rows. A round lasts from its announcement to the end of its evaluation, so θ goes out twice. An
answer that is lost would show: as a report that is missing, or a round as long as its deadline.

Connecting is timed from the moment the hosts are told to connect until the broker has passed on the
birth of the last agent, which an agent publishes once it is connected and has all four of its
subscriptions. Making the agents (configuration, session, TLS-less link) is timed beside it.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import Report, budget, finish, option_parser, shown, spread

from broker.link.link import Received
from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker
from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic, Topics
from coordinator.records.records import RoundRecord
from fedge.open_files import raise_file_limit
from fleet.runs.host import AgentHost, find_agents
from fleet.runs.run import RunOptions, host_count, run_scenario

HERE = Path(__file__).parent
FEATURES, CLASSES = 100, 10
ROWS = 40  # of an agent; a fifth is held out
FEDERATION = "many"
PATIENCE_S = 60.0

Usage = dict[str, float]


class Watcher:
    """Collects rounds, and what the processes hold in memory after each."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []
        self.usage: dict[str, Usage] = {}
        self.began_s = time.perf_counter()
        self.first_round_s = 0.0

    def begin(self, *_: object) -> None:
        """Folders are written, nothing runs yet."""
        self.written_s = time.perf_counter() - self.began_s

    def round(self, record: RoundRecord) -> None:
        """Keeps it."""
        if not self.records:
            self.first_round_s = time.perf_counter() - self.began_s - record.seconds
        self.records.append(record)
        self.usage = usage()

    def waiting(self, eligible: int, wanted: int) -> None:
        """Not of interest."""

    def note(self, text: str) -> None:
        """Something went wrong."""
        print(text, file=sys.stderr)

    def working(self, what: str, done: int, of: int) -> None:
        """There is none."""


def usage() -> dict[str, Usage]:
    """Largest resident size and processor time so far of the processes this one has started."""
    found: dict[str, Usage] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                status = Path(f"/proc/{pid}/status").read_text()
                times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                found[_role(command)] = {
                    "peak_rss_mib": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
                    "cpu_s": sum(map(int, times)) / ticks,
                }
    return found


def _role(command: list[str]) -> str:
    for role in ("mosquitto", "coordinator"):
        if any(role in part for part in command):
            return role
    return Path(next(part for part in command if "host-" in part)).name


def write_scenario(folder: Path, agents: int, rounds: int) -> Path:
    """A scenario, and data that one model can learn."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(FEATURES, CLASSES))
    rows = rng.normal(size=(agents * ROWS, FEATURES)).astype(np.float32)
    target = (rows @ truth).argmax(1).astype(np.int32)
    np.savez(folder / "data.npz", reading=rows, target=target)
    scenario = {
        "name": FEDERATION,
        "description": "made-up readings",
        "licence": "made up",
        "data": {
            "path": "data.npz",
            "inputs": {"reading": {"array": "reading"}},
            "target": {"array": "target"},
        },
        "partition": {"kind": "iid", "clients": agents},
        "federation": {
            "model": str(HERE / "dense_10000"),
            "rounds": rounds,
            "cohort": {"announce": "rule"},
            "training": {"batch_size": 16, "learning_rate": 0.1},
            "codec": {"name": "int8"},
            "round": {"deadline_s": PATIENCE_S},
        },
    }
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(scenario))
    return path


def measure_rounds(agents: int, rounds: int) -> Report:
    """One federation, as `fedge fleet run` runs it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_scenario(folder, agents, rounds)
        watcher = Watcher()
        hosts = host_count(agents, None)
        options = RunOptions(folder / "out", broker="mosquitto", hosts=hosts or 1)
        report = run_scenario(path, options, watcher)
    records = watcher.records
    return {
        "agents": agents,
        "hosts": hosts or 1,
        "parameters": report["parameters"],
        "round_s": spread(record.seconds for record in records),
        "rounds": [
            {
                "asked": record.asked,
                "reported": record.reported,
                "refused": record.refused,
                "declined": len(record.declined),
                "seconds": record.seconds,
                "loss": record.loss,
                "bytes_up": record.bytes_up,
                "bytes_down": record.bytes_down,
            }
            for record in records
        ],
        "lost": sum(record.asked - record.reported for record in records),
        "folders_written_s": watcher.written_s,
        "first_round_began_after_s": watcher.first_round_s,
        "processes": watcher.usage,
    }


def serve(folder: Path) -> None:
    """A host that says when its agents are made, and connects when it is told to."""
    started = time.perf_counter()
    host = AgentHost(find_agents([folder]))
    gc.freeze()  # as `run_host` does
    print(json.dumps({"made_s": time.perf_counter() - started}), flush=True)
    sys.stdin.readline()

    def stop_at_end() -> None:
        sys.stdin.read()  # until the parent closes it
        host.stop()

    threading.Thread(target=stop_at_end, daemon=True).start()
    host.run()


def measure_connecting(agents: int) -> Report:
    """Hosts connect; a client of its own counts the births."""
    raise_file_limit(agents + 200)
    with tempfile.TemporaryDirectory() as name, LocalBroker("mosquitto") as broker:
        folder = Path(name)
        hosts = max(1, host_count(agents, None))
        for n in range(agents):
            write_agent(folder / f"host-{n % hosts}" / f"agent-{n}", n, broker.port)
        births = Births(broker)
        workers = [_start_worker(folder / f"host-{n}") for n in range(hosts)]
        try:
            made = [json.loads(_line(worker))["made_s"] for worker in workers]
            started = time.perf_counter()
            for worker in workers:
                _tell(worker, "\n")
            connected_s = births.wait(agents, started)
            used = usage()
        finally:
            stopped = time.perf_counter()
            for worker in workers:
                worker.communicate()  # closes its stdin: it says goodbye and ends
            births.close()
        return {
            "agents": agents,
            "hosts": hosts,
            "connected_s": connected_s,
            "connected": births.count,
            "made_s": max(made),
            "goodbyes_s": time.perf_counter() - stopped,
            "processes": used,
        }


class Births:
    """Counts agents that are online."""

    def __init__(self, broker: LocalBroker) -> None:
        self.count = 0
        self._link = MqttLink(broker.settings, "births", session_expiry_s=0)
        self._link.subscribe(Topics(FEDERATION).from_agents[0])
        self._link.open()

    def wait(self, wanted: int, started: float) -> float:
        """Seconds from `started` until the last birth."""
        online: set[str] = set()
        last = started
        topics = Topics(FEDERATION)
        while len(online) < wanted and time.perf_counter() < started + PATIENCE_S:
            event = self._link.poll(1.0)
            if not isinstance(event, Received):
                continue
            topic = topics.parse(event.topic)
            if messages.decode(event.payload, AgentStatus).state == "online":
                assert isinstance(topic, AgentStatusTopic)
                online.add(topic.agent_id)
                last = time.perf_counter()
        self.count = len(online)
        return last - started

    def close(self) -> None:
        """Says goodbye."""
        self._link.close()


def write_agent(folder: Path, number: int, port: int) -> None:
    """An agent's file; its data is never read, since there is no model."""
    folder.mkdir(parents=True)
    config = {
        "federation": FEDERATION,
        "agent_id": f"agent-{number}",
        "broker": {"port": port},
        "data": {"path": "data.npz"},
    }
    (folder / "agent.yaml").write_text(json.dumps(config))  # JSON is YAML


def _start_worker(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def _tell(worker: subprocess.Popen[str], text: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(text)
    worker.stdin.flush()


def measure(agents: int, rounds: int, connect: int) -> Report:
    """Both, one after the other."""
    run = measure_rounds(agents, rounds)
    connecting = measure_connecting(connect)
    missing = connect - connecting["connected"]
    return {
        "run": run,
        "connecting": connecting,
        "budgets": [
            budget(run["round_s"]["max"], 10, f"s, slowest round of {agents:,} agents"),
            budget(run["lost"], 0, "updates lost"),
            budget(connecting["connected_s"], 5, f"s until {connect:,} agents are connected"),
            budget(missing, 0, "agents that did not connect"),
        ],
    }


def show(report: Report) -> None:
    """Rounds, connections, memory."""
    run, connecting = report["run"], report["connecting"]
    print(
        f"{run['agents']:,} agents in {run['hosts']} hosts, P = {run['parameters']:,}: "
        f"{shown(run['round_s'], 1, 2)} s a round, {len(run['rounds'])} rounds"
    )
    for number, record in enumerate(run["rounds"], 1):
        print(
            f"  round {number}: {record['reported']:,} of {record['asked']:,} reported, "
            f"{record['seconds']:.2f} s, "
            f"loss {record['loss']:.3f}, {record['bytes_up'] / 1e6:.1f} MB up, "
            f"{record['bytes_down'] / 1e6:.1f} MB down"
        )
    print(
        f"  folders written in {run['folders_written_s']:.2f} s, "
        f"first round after {run['first_round_began_after_s']:.2f} s"
    )
    _show_usage(run["processes"])
    print(
        f"\n{connecting['connected']:,} agents connected in {connecting['connected_s']:.2f} s "
        f"(made in {connecting['made_s']:.2f} s, said goodbye in {connecting['goodbyes_s']:.2f} s)"
    )
    _show_usage(connecting["processes"])


def _show_usage(processes: dict[str, Usage]) -> None:
    for name, used in processes.items():
        print(f"  {name}: {used['peak_rss_mib']:.0f} MiB at its peak, {used['cpu_s']:.1f} s of CPU")


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["--worker"]:
        serve(Path(sys.argv[2]))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--connect", type=int, default=5000)
    options: Any = parser.parse_args()
    finish("many_agents", measure(options.agents, options.rounds, options.connect), options, show)


if __name__ == "__main__":
    main()
