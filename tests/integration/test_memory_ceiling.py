"""An agent that leaks: it starts anew between jobs, and the federation does not notice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import yaml

from broker.local.broker import LocalBroker

ROUNDS = 5
CEILING = 160_000_000
ANEW = "after the first job: starting anew"
#: A defect of a plug-in: every job leaves 25 MB behind.
LEAK = """\
from edge_agent import worker

kept, run = [], worker.run_local_task

def leaking(*arguments):
    kept.append(b"x" * 25_000_000)
    return run(*arguments)

worker.run_local_task = leaking
"""


def write_files(folder: Path, port: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2)).astype(np.float32)
    np.savez(folder / "data.npz", features=x, y=x.sum(1))
    (folder / "leak.py").write_text(LEAK)
    common = {"federation": "f", "broker": {"port": port}}
    agent = {
        "agent_id": "leaking",
        "data": {"path": "data.npz"},
        "plugins": ["leak.py"],
        "limits": {"max_memory_bytes": CEILING},
        "state_dir": "agent-state",
    }
    coordinator = {
        "model": "house_price",
        "rounds": ROUNDS,
        "start": {"agents": 1},
        "round": {"deadline_s": 20},
        "training": {"learning_rate": 0.001},
        "state_dir": "coordinator-state",
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(common | agent))
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(common | coordinator))


def start(folder: Path, part: str, stack: ExitStack) -> subprocess.Popen[bytes]:
    log = stack.enter_context((folder / f"{part}.log").open("wb"))
    command = [sys.executable, "-P", "-m", "fedge", part, "run", "--config", f"{part}.yaml"]
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    stack.callback(process.wait, 20)
    stack.callback(process.kill)
    return process


def wait_connected(log: Path) -> None:
    """Waits until the latest instance is connected, and so handles signals."""
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        said = log.read_text()
        if said.count("connected again") == said.count(ANEW):
            return
        time.sleep(0.05)
    raise TimeoutError(said)


def test_an_agent_above_its_ceiling_starts_anew_and_every_update_counts_once(
    mosquitto: LocalBroker, tmp_path: Path
) -> None:
    write_files(tmp_path, mosquitto.port)
    with ExitStack() as stack:
        coordinator = start(tmp_path, "coordinator", stack)
        agent = start(tmp_path, "agent", stack)
        assert coordinator.wait(60) == 0, (tmp_path / "coordinator.log").read_text()
        wait_connected(tmp_path / "agent.log")
        status = Path(f"/proc/{agent.pid}/status").read_text()
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0, "the process is the one that was started"
    said = (tmp_path / "agent.log").read_text()
    assert said.count(ANEW) >= 2, said
    assert [n for n in range(1, ROUNDS + 1) if f"round {n}: update counted" not in said] == []
    assert "Traceback" not in said
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    assert resident < CEILING + 2 * 25_000_000
