"""One round's training, as an agent does it; the same file runs on x86 and inside the root.

`python train_once.py RUNTIME FOLDER`: FOLDER holds `job.json` ({"model", "training", "data"}) and
the rows; writes θ to RUNTIME-MACHINE.npy and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import msgspec
import numpy as np

from edge_agent.data.config import DataConfig
from edge_agent.data.dataset import load_dataset
from edge_agent.training.trainer import train
from fedge.yaml_config import parse_config
from learning.algorithms.training import TrainingPlan
from models.runtime.program import Program
from models.zoo import load_zoo

SEED = 7


def main(runtime: str, folder: Path) -> None:
    """See the module."""
    job = json.loads((folder / "job.json").read_text())
    package = load_zoo(job["model"])
    program = Program(package.program, package.spec, runtime=runtime)
    data = load_dataset(
        parse_config(job["data"], DataConfig, "job.json"), package.spec, folder, folder
    )
    plan = msgspec.convert(job["training"], TrainingPlan)
    result = train(
        program,
        package.whole(package.initial),
        data.part("train"),
        plan,
        np.random.default_rng(SEED),
    )
    theta = package.initial + result.delta[: package.spec.size]
    machine = platform.machine()
    np.save(folder / f"{runtime}-{machine}.npy", theta)
    sums = program.evaluate(package.whole(theta), data.part("test"))
    seen = {
        "machine": machine,
        "runtime": program.runtime,
        "rows": result.num_examples,
        "steps": result.steps,
        "loss": sums.loss / sums.weight,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
