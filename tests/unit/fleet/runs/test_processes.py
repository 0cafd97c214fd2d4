"""Events from the processes of a fleet run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fleet.runs.processes import Processes


def test_unreadable_lines_are_skipped_and_the_end_is_always_reported(tmp_path: Path) -> None:
    lines = '{"event":"round","record":NaN}\n{"event":"waiting","able":1}\n'
    code = f"import sys; sys.stdout.write({lines!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    processes = Processes(tmp_path)
    processes._read_events(process)
    process.wait()
    event = processes.events.get(timeout=0)
    assert event is not None
    assert (event.event, event.able) == ("waiting", 1)
    assert processes.events.get(timeout=0) is None
