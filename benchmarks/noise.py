"""Rounds and log of a coordinator while one device floods it with junk.

Real processes and a real Mosquitto on loopback: a coordinator, a few honest agents, and a client
that publishes junk as quickly as the broker takes it. Each kind of flood has a federation of its
own; its rounds before the flood stand beside those during it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from measure import Report, budget, finish, option_parser
from small_federation import DATA, _fedge, _write_agent

from broker.local.broker import HOST, LocalBroker
from tests.acceptance.flood import agent_topics, flood

MESSAGES = 100_000
AGENTS = 4
QUIET_S = 8.0
#: Without a round for so long the flood has stopped the federation.
PATIENCE_S = 90.0
BUDGETS = {"log": 64_000, "slower": 3.0}


#: Which ids the junk is sent under.
KINDS = {"a device": "intruder", "another's id": "site-0", "many ids": "intruder-{}"}
#: Queues of the broker of `fedge broker init`.
QUEUES = "max_queued_messages 20000\nmax_queued_bytes 134217728\n"


class Rounds:
    """Moments at which the coordinator told of a round."""

    def __init__(self, output: IO[bytes]) -> None:
        self.ended_s: list[float] = []
        self._output = output
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._output:
            if json.loads(line)["event"] == "round":
                self.ended_s.append(time.monotonic())

    def wait_for(self, count: int, patience_s: float) -> None:
        """Waits until so many rounds have ended."""
        until_s = time.monotonic() + patience_s
        while len(self.ended_s) < count and time.monotonic() < until_s:
            time.sleep(0.02)

    def seconds(self, since_s: float, until_s: float) -> list[float]:
        """Seconds from one end to the next, of the rounds that ended meanwhile."""
        pairs = zip(self.ended_s, self.ended_s[1:], strict=False)
        return [late - early for early, late in pairs if since_s <= late <= until_s]


def measure(kind: str, qos: int, count: int) -> Report:
    """One federation, before and during a flood."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name) / "noise"
        folder.mkdir()
        broker = stack.enter_context(LocalBroker("mosquitto", extra_config=QUEUES))
        coordinator, rounds = _federation(folder, broker.port, stack)
        rounds.wait_for(3, PATIENCE_S)
        began_s, log_before = time.monotonic(), _log_bytes(folder)
        time.sleep(QUIET_S)
        quiet = rounds.seconds(began_s, time.monotonic())
        quiet_log = _log_bytes(folder) - log_before
        log_before, cpu_before = _log_bytes(folder), _cpu_s(coordinator.pid)
        began_s = time.monotonic()
        flood(broker.port, agent_topics(folder.name, KINDS[kind], count), qos)
        sent_s = time.monotonic() - began_s
        # The flood is over when a round begins and ends after everything that waited.
        rounds.wait_for(len(rounds.ended_s) + 3, PATIENCE_S)
        noisy = rounds.seconds(began_s, time.monotonic())
        return {
            "messages": count,
            "qos": qos,
            "sent_s": sent_s,
            "quiet_round_s": statistics.median(quiet),
            "slowest_quiet_round_s": max(quiet),
            "rounds": len(noisy),
            "slowest_round_s": max(noisy, default=PATIENCE_S),
            "log_bytes": _log_bytes(folder) - log_before,
            "quiet_log_bytes_per_s": quiet_log / QUIET_S,
            "processor_s": _cpu_s(coordinator.pid) - cpu_before,
            "resident_mib": _resident_mib(coordinator.pid),
        }


def _federation(
    folder: Path, port: int, stack: ExitStack
) -> tuple[subprocess.Popen[bytes], Rounds]:
    broker = {"host": HOST, "port": port}
    configuration: dict[str, Any] = {
        "federation": folder.name,
        "model": "house_price",
        "broker": broker,
        "rounds": 1_000_000,
        "start": {"agents": AGENTS},
        "round": {"minimum": AGENTS},
        # Half a second of training: a round like those of small devices.
        "training": {"epochs": 1500, "batch_size": 0, "learning_rate": 0.0005},
    }
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(configuration))
    with np.load(DATA) as file:
        for number in range(AGENTS):
            rows = slice(number, None, 50)
            arrays = {"features": file["x"][rows], "y": file["y"][rows] * 1e-5}
            config = _write_agent(folder, number, broker, arrays, {})
            _start(stack, _fedge("agent", config), folder, subprocess.DEVNULL)
    log = stack.enter_context((folder / "log").open("wb"))
    command = [*_fedge("coordinator", folder / "coordinator.yaml"), "--json"]
    process = _start(stack, command, folder, log, subprocess.PIPE)
    assert process.stdout is not None
    return process, Rounds(process.stdout)


def _start(
    stack: ExitStack, command: list[str], folder: Path, err: Any, out: Any = None
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, cwd=folder, stderr=err, stdout=out)
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    return process


def _log_bytes(folder: Path) -> int:
    return (folder / "log").stat().st_size


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _show(report: Report) -> None:
    for name, row in report["floods"].items():
        print(
            f"{name:28}{row['messages']:>8,} messages sent in {row['sent_s']:.1f} s: rounds of "
            f"{row['quiet_round_s']:.2f} s, slowest {row['slowest_quiet_round_s']:.2f} before and "
            f"{row['slowest_round_s']:.2f} s then; log {row['log_bytes']:,} bytes; "
            f"{row['processor_s']:.1f} s of processor time, {row['resident_mib']:.0f} MiB"
        )


def main() -> None:
    """Runs the floods."""
    parser = option_parser(__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--only", help=f"kind of flood: {', '.join(KINDS)}")
    options = parser.parse_args()
    floods = {
        f"{kind}, QoS {qos}": measure(kind, qos, options.messages)
        for kind in KINDS
        for qos in (1, 0)
        if options.only in (None, kind, f"{kind}, QoS {qos}")
    }
    budgets = [
        budget(row["log_bytes"], BUDGETS["log"], f"log of {name}, bytes")
        for name, row in floods.items()
    ]
    finish("noise", {"floods": floods, "budgets": budgets}, options, _show)


if __name__ == "__main__":
    main()
