"""Tells a running Mosquitto to read its access rules and revocations again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from broker.security.access_control import ACL_FILE, CONFIG_FILE

_MOST_BYTES = 1 << 20
_ACL_LINE = re.compile(r"(?m)^acl_file[ \t]+(/.*?)[ \t]*$")


def reads_elsewhere(folder: Path) -> str:
    """Says so when Mosquitto's configuration in `folder` names other access rules; else empty.

    Its paths are absolute: in a fleet that was moved or copied they lead to where it was.
    """
    config = folder / CONFIG_FILE
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = _ACL_LINE.search(_start_of(config))
        if found is None:
            return ""
        with contextlib.suppress(OSError):
            if Path(found[1]).samefile(folder / ACL_FILE):
                return ""
        return (
            f"{config} names {found[1]}: was this fleet moved or copied? No broker knows of its "
            "changes until you correct the paths there and start Mosquitto with that file"
        )
    return ""


def _start_of(path: Path) -> str:
    # The folder is Mosquitto's: whoever broke into it must not hold root up, with a pipe say.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(_MOST_BYTES).decode()


def reload_mosquitto(pid_file: Path) -> str:
    """Sends SIGHUP to the broker that wrote `pid_file`; returns what happened, in words."""
    # A copy has a copy of the number, too: its broker would be told, and read other rules.
    if elsewhere := reads_elsewhere(pid_file.parent):
        return elsewhere
    try:
        pid = int(_start_of(pid_file))
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
