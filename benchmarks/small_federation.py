"""A few real agents, a real coordinator and a broker that is there already, for benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml

DATA = Path(__file__).parents[1] / "examples" / "data" / "housing_california.npz"
PATIENCE_S = 60


def run_rounds(
    folder: Path,
    broker: Mapping[str, Any],
    agents: int,
    rounds: int,
    *,
    coordinator: Mapping[str, Any] | None = None,
    agent: Mapping[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], list[float]]:
    """Records of the rounds of a new federation but the first, and the agents' memory in MiB.

    Args:
        folder: made by the caller; its name is that of the federation.
        broker: the `broker` section of every configuration.
        agents: how many; each has a fiftieth of the example's rows.
        rounds: to be run.
        coordinator: more keys of the coordinator's configuration.
        agent: more keys of each agent's.
    """
    configuration = {
        "federation": folder.name,
        "model": "house_price",
        "broker": dict(broker),
        "rounds": rounds,
        "start": {"agents": agents, "timeout_s": PATIENCE_S},
        "round": {"minimum": agents},
        "training": {"batch_size": 0, "learning_rate": 0.45},
        **(coordinator or {}),
    }
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(configuration))
    with np.load(DATA) as file, ExitStack() as stack:
        processes = []
        for number in range(agents):
            rows = slice(number, None, 50)
            arrays = {"features": file["x"][rows], "y": file["y"][rows] * 1e-5}
            config = _write_agent(folder, number, broker, arrays, agent or {})
            process = subprocess.Popen(
                _fedge("agent", config), stderr=subprocess.DEVNULL, cwd=folder
            )
            processes.append(process)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
        done = subprocess.run(
            [*_fedge("coordinator", folder / "coordinator.yaml"), "--json"],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=True,
            cwd=folder,
        )
        memory = [_resident_mib(process.pid) for process in processes]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [event["record"] for event in events if event["event"] == "round"][1:], memory


def _write_agent(
    folder: Path,
    number: int,
    broker: Mapping[str, Any],
    arrays: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Path:
    own = folder / f"site-{number}"
    own.mkdir()
    np.savez(own / "data.npz", **arrays)
    config = {
        "federation": folder.name,
        "agent_id": own.name,
        "broker": dict(broker),
        "data": {"path": "data.npz", "target": {"array": "y"}},
        **more,
    }
    (own / "agent.yaml").write_text(yaml.safe_dump(config))
    return own / "agent.yaml"


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def _fedge(part: str, config: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "fedge", part, "run", "--config", str(config)]
