"""fedge: `fleet run`: processes of a coordinator and of agents, on a broker that is there."""

import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from measured import given
from rounds_watcher import RoundsWatcher

from fleet.runs.run import RunOptions, run_scenario

marks, counted = [], []


def on_round(record):
    """Keep the moment, and the bytes that fedge itself has counted."""
    marks.append(time.monotonic())
    counted.append((record.bytes_up, record.bytes_down))


work = given()
logging.disable(logging.WARNING)
result = Path(sys.argv[2])
out = result.with_suffix("")
options = RunOptions(out, broker=f"mqtt://127.0.0.1:{sys.argv[3]}")
run_scenario(work.path.parent / "peers.yaml", options, RoundsWatcher(on_round))
np.save(result, np.load(out / "model" / "initial.npy").astype(np.float64))
print(json.dumps({"marks": marks, "counted": counted, "versions": {"fedge": version("fedge")}}))
