"""What the agent computes on Arm is what it computes on x86, alone and in a federation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.local.broker import LocalBroker
from learning.vector.parameters import F32
from models.runtime.wheels import DEVICE_RUNTIMES
from models.zoo import load_zoo
from tests.acceptance.federation import Federation, Rows, running
from tests.arm.conftest import Figure
from tests.arm.root import FEDGE, PYTHON, Root
from tests.arm.train_once import SEED

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA = ROOT / "examples" / "data"
#: Largest difference of a weight after one round. The two processors add in another order.
LIMIT = 1e-4
Note = Callable[[Figure], None]


@dataclass(frozen=True)
class Job:
    """One device's rows, and what it does with them, as in the scenario of that name."""

    model: str
    file: str
    client: int
    training: dict[str, Any]
    scale: float = 1.0

    def rows(self, client: int | None = None) -> Rows:
        """Of one device."""
        with np.load(DATA / self.file) as file:
            mine = file["client"] == (self.client if client is None else client)
            return file["x"][mine], file["y"][mine]

    def write(self, folder: Path) -> None:
        """What `train_once.py` reads."""
        x, y = self.rows()
        np.savez(folder / "rows.npz", x=x, y=y)
        data = {
            "path": "rows.npz",
            "inputs": {load_zoo(self.model).spec.inputs[0].name: {"array": "x"}},
            "target": {"array": "y", "scale": self.scale},
        }
        job = {"model": self.model, "training": self.training, "data": data}
        (folder / "job.json").write_text(json.dumps(job))


JOBS = [
    Job(
        "house_price",
        "housing_california.npz",
        1,
        {"epochs": 10, "batch_size": 0, "learning_rate": 0.45},
        scale=1e-5,
    ),
    Job(
        "wearable_activity",
        "har_watch.npz",
        0,
        {"epochs": 2, "batch_size": 32, "learning_rate": 0.02, "momentum": 0.9},
    ),
    Job(
        "handwritten_digit_cnn",
        "mnist_writers_small.npz",
        5,
        {"epochs": 2, "batch_size": 10, "learning_rate": 0.05},
    ),
]


def trained_here(runtime: str, folder: Path) -> tuple[dict[str, Any], F32]:
    command = [sys.executable, str(HERE / "train_once.py"), runtime, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, timeout=300)
    return loaded(json.loads(done.stdout), runtime, folder)


def trained_inside(root: Root, runtime: str, folder: Path) -> tuple[dict[str, Any], F32]:
    shutil.copy(HERE / "train_once.py", folder)
    script = folder / "train_once.py"
    out = root.run(PYTHON, "-P", str(script), runtime, str(folder), shared=folder)
    return loaded(json.loads(out), runtime, folder)


def loaded(seen: dict[str, Any], runtime: str, folder: Path) -> tuple[dict[str, Any], F32]:
    return seen, np.load(folder / f"{runtime}-{seen['machine']}.npy")


@pytest.mark.parametrize("runtime", DEVICE_RUNTIMES)
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.model)
def test_a_round_s_training_gives_the_weights_of_x86(
    root: Root, job: Job, runtime: str, tmp_path: Path, note: Note
) -> None:
    if runtime not in root.system.runtimes:
        pytest.skip(f"{runtime} has no wheel for {root.name}")
    job.write(tmp_path)
    here, expected = trained_here(runtime, tmp_path)
    there, theta = trained_inside(root, runtime, tmp_path)
    assert there["machine"] == root.system.machine.name
    assert here["machine"] != there["machine"]
    assert (there["rows"], there["steps"]) == (here["rows"], here["steps"])
    assert there["runtime"].startswith(runtime)
    moved = float(np.abs(expected - load_zoo(job.model).initial).max())
    difference = float(np.abs(theta - expected).max())
    note(
        {
            "on": root.name,
            "model": job.model,
            "runtime": there["runtime"],
            "steps": there["steps"],
            "seed": SEED,
            "moved": f"{moved:.2g}",
            "differs": f"{difference:.1e}",
        }
    )
    assert moved > 100 * LIMIT, "a round that changes nothing proves nothing"
    assert difference <= LIMIT
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)


def test_a_user_sees_which_runtime_is_taken_and_whether_the_data_fit(
    root: Root, tmp_path: Path
) -> None:
    runtimes = json.loads(root.run(FEDGE, "model", "runtimes", "--json"))
    assert (runtimes["machine"], runtimes["libc"]) == (root.system.machine.name, "glibc")
    assert runtimes["taken"] == root.system.runtimes[0]
    assert tuple(runtimes["installed"]) == root.system.runtimes
    assert set(DEVICE_RUNTIMES) - set(runtimes["no_wheel"]) == set(root.system.runtimes)
    federation = Federation(tmp_path, names=("pi",), model="wearable_activity")
    federation.write([JOBS[1].rows()])
    config = str(federation.config("pi"))
    command = (FEDGE, "agent", "check", "--config", config, "--model", "wearable_activity")
    assert f"parameters, {runtimes['taken']} 2." in root.run(*command, shared=tmp_path)


@dataclass
class MixedFederation(Federation):
    """Some of its agents run inside a root.

    Attributes:
        roots: of agents, by name.
    """

    roots: dict[str, Root] = field(default_factory=dict)

    def fedge(self, name: str) -> list[str]:
        if name not in self.roots:
            return super().fedge(name)
        return self.roots[name].inside(FEDGE, shared=self.folder)


def resident_mib(pid: int) -> float:
    """Memory of a process, its emulator included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def test_agents_on_arm_and_x86_learn_together(
    root: Root, mosquitto: LocalBroker, tmp_path: Path, note: Note
) -> None:
    rounds, arm = 3, root.name
    training = {"epochs": 5, "batch_size": 0, "optimizer": "sgd", "learning_rate": 0.05}
    federation = MixedFederation(
        tmp_path,
        mosquitto.port,
        names=(arm, "x86"),
        coordinator={
            "federation": f"mixed-{arm}",
            "rounds": rounds,
            "training": training,
            "start": {"agents": 2, "timeout_s": 300},
            "round": {"minimum": 2, "deadline_s": 120},
        },
        agent={"federation": f"mixed-{arm}"},
        model="wearable_activity",
        roots={arm: root},
    ).write([JOBS[1].rows(0), JOBS[1].rows(1)])
    with running(federation):
        federation.start("coordinator", "x86")
        started = time.monotonic()
        federation.start(arm)
        while "connected" not in federation.said(arm):
            assert time.monotonic() - started < 120, federation.said(arm)
            time.sleep(0.05)
        seconds = time.monotonic() - started
        federation.await_version(rounds, timeout_s=300)
        memory, on_x86 = (resident_mib(federation.pid(name)) for name in (arm, "x86"))
    for record in federation.records():
        assert set(record.agents) == {arm, "x86"}
        assert record.refused == 0
    expected = federation.expected_theta(rounds)
    difference = float(np.abs(federation.theta(rounds) - expected).max())
    note(
        {
            "on": arm,
            "federation": f"with an agent on x86, {rounds} rounds",
            "differs": f"{difference:.1e}",
            "connected": f"{seconds:.1f} s",
            "memory": f"{memory:.0f} MiB with the emulator, {on_x86:.0f} MiB on x86",
        }
    )
    assert difference <= LIMIT
