"""fedge: `fleet simulate`: every event of every agent, or cohorts of agents at once."""

import logging
import sys
from pathlib import Path

import numpy as np
from measured import Meter, given
from rounds_watcher import RoundsWatcher

from fleet.simulate import SimulateOptions, simulate

meter = Meter()
work = given()
logging.disable(logging.WARNING)
out = Path(sys.argv[2]).with_suffix("")
# One process: cohorts take one a core else, in which processor time is the same.
options = SimulateOptions(out, mode=sys.argv[3], processes=1, trace=False, check=False)
simulate(work.path.parent / "peers.yaml", options, RoundsWatcher(lambda _record: meter.round()))
meter.finish(np.load(out / "model" / "initial.npy"), "fedge", "numpy")
