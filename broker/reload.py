"""Tells a running Mosquitto to read its access rules and revocations again."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def reload_mosquitto(pid_file: Path) -> str:
    """Sends SIGHUP to the broker that wrote `pid_file`; returns what happened, in words."""
    try:
        pid = int(pid_file.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        name = ""
    if name != "mosquitto":  # an old file's number may be another program's, which SIGHUP would end
        return (
            "no broker runs from this folder on this machine: it takes effect at its next start;"
            " where its files are copied elsewhere, copy them and reload it there"
        )
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return (
            f"the running broker could not be told ({error.strerror}):"
            f" make it take effect with kill -HUP {pid}"
        )
    return f"the running broker (process {pid}) has been told"
