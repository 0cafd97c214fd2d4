"""All simulations in turn, some times: each is a script in an environment of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from environments import Environments, NotInstalled
from measure import Report, spread
from measured import Work
from processes import environment, run_script
from work import TOLERANCE, distance, reference, write_scenario

TASKS = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Peer:
    """One way to simulate.

    Attributes:
        title: for the table.
        environment: that it runs in.
        script: of `tasks/`.
        arguments: of the script, after the files.
        limit_s: for one run.
        differs: why its θ cannot be that of the others; empty: it must be.
    """

    title: str
    environment: str
    script: str
    arguments: tuple[str, ...] = ()
    limit_s: float = 120
    differs: str = ""


PEERS = {
    "numpy-batched": Peer("one numpy call for all clients, no framework", "numpy", "numpy_batched"),
    "numpy-loop": Peer("a loop in Python, numpy, no framework", "numpy", "numpy_loop"),
    "fedge-arrays": Peer(
        "fedge fleet simulate, cohorts of arrays",
        "fedge_fleet",
        "fedge_simulate",
        ("arrays",),
        differs="a cohort draws its orders of rows from one stream",
    ),
    "fedge-bytes": Peer(
        "fedge fleet simulate, cohorts of bytes", "fedge_fleet", "fedge_simulate", ("bytes",)
    ),
    "fedge-exact": Peer(
        "fedge fleet simulate, every event", "fedge_fleet", "fedge_simulate", ("exact",)
    ),
    "pfl-numpy": Peer("pfl-research on numpy", "pfl", "pfl_numpy"),
    "fedjax": Peer("FedJAX, CPU", "fedjax", "fedjax_cpu"),
    "pfl-torch": Peer("pfl-research on PyTorch", "pfl_torch", "pfl_torch"),
    "flower-ray": Peer("Flower, Ray backend", "flower", "flower_ray", limit_s=300),
}
#: Measured by each run of a script, and shown as a spread.
FIGURES = (
    "cpu_ms",
    "wall_ms",
    "import_s",
    "import_cpu_s",
    "first_round_s",
    "first_round_cpu_s",
    "rss_peak_mb",
)


def simulate(
    names: list[str], work: Work, folder: Path, environments: Environments, repeats: int
) -> Report:
    """Runs every named peer `repeats` times in turn: its figures, or why there are none."""
    write_scenario(folder, work)
    expected = reference(work)
    runs: dict[str, list[Report]] = {name: [] for name in names}
    reasons: dict[str, str] = {}
    for repeat in range(repeats):
        for name in names:
            if name in reasons:
                continue
            print(f"{name}, {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
            try:
                runs[name].append(_run(PEERS[name], work, expected, folder, environments))
            except (NotInstalled, RuntimeError) as error:
                reasons[name] = str(error)
    return {
        name: {"title": PEERS[name].title, "not_run": reasons[name]}
        if name in reasons
        else _summary(PEERS[name], runs[name], environments)
        for name in names
    }


def _run(peer: Peer, work: Work, expected: Any, folder: Path, environments: Environments) -> Report:
    python = environments.python(peer.environment)
    result = folder / f"{peer.script}{'-'.join(('', *peer.arguments))}.npy"
    result.unlink(missing_ok=True)
    variables = environment(python, RAY_TMPDIR=str(folder), FLWR_HOME=str(folder / "flower"))
    script = str(TASKS / f"{peer.script}.py")
    command = [str(python), script, str(work.path), str(result), *peer.arguments]
    found: Report = json.loads(run_script(command, folder, variables, peer.limit_s))
    each = 1000 / work.clients
    return found | {
        "cpu_ms": found["round_cpu_s"] * each,
        "wall_ms": found["round_wall_s"] * each,
        "distance": distance(work, expected, np.load(result)),
    }


def _summary(peer: Peer, runs: list[Report], environments: Environments) -> Report:
    farthest = max(run["distance"] for run in runs)
    return {
        "title": peer.title,
        **{key: spread(run[key] for run in runs) for key in FIGURES},
        "distance": farthest,
        "same": None if peer.differs else farthest <= TOLERANCE,
        "differs": peer.differs,
        "installed_mb": environments.installed[peer.environment]["mb"],
        "versions": runs[0]["versions"],
    }
