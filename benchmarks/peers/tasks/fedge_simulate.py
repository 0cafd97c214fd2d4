"""fedge: `fleet simulate`: every event of every agent, or cohorts of agents at once."""

import logging
import sys
from pathlib import Path

import numpy as np
from measured import Meter, given
from rounds_watcher import RoundsWatcher

from fleet.virtual.simulate import SimulationOptions, simulate_scenario

meter = Meter()
work = given()
mode = sys.argv[3]
if mode != "exact":
    raise SystemExit("this fedge has no simulation of cohorts yet")
logging.disable(logging.WARNING)
out = Path(sys.argv[2]).with_suffix("")
options = SimulationOptions(out, trace=False, check=False)
watcher = RoundsWatcher(lambda _record: meter.round())
simulate_scenario(work.path.parent / "peers.yaml", options, watcher)
meter.finish(np.load(out / "model" / "initial.npy"), "fedge", "numpy")
