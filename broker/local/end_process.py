"""End of a process that this one has started."""

from __future__ import annotations

import subprocess


def end_process(process: subprocess.Popen[bytes], patience_s: float) -> int:
    """Ends a process if it still runs: SIGTERM, after `patience_s` SIGKILL.

    Returns:
        its exit code.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
