"""Makes a running Mosquitto read its access rules and revocations again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from broker.security.access_control import ACL_FILE, CONFIG_FILE

_MAX_BYTES = 1 << 20
_ACL_LINE = re.compile(r"(?m)^acl_file[ \t]+(/.*?)[ \t]*$")


def warn_if_moved(folder: Path) -> str:
    """Returns a warning if Mosquitto's configuration names other access rules; else empty.

    Its paths are absolute: in a fleet folder that was moved or copied they name the old place.
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
            f"{config} names {found[1]}: was this fleet moved or copied? No broker reads its "
            "changes until you correct the paths there and start Mosquitto with that file"
        )
    return ""


def _start_of(path: Path) -> str:
    # The folder belongs to Mosquitto's account, which must not be able to block root with a pipe.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(_MAX_BYTES).decode()


def reload_mosquitto(pid_file: Path) -> str:
    """Sends SIGHUP to the broker that wrote `pid_file`; returns a sentence on the result."""
    # A copied folder has a copy of the pid file: its broker would reload other rules.
    if warning := warn_if_moved(pid_file.parent):
        return warning
    try:
        pid = int(_start_of(pid_file))
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        name = ""
    if name != "mosquitto":  # a stale pid may be another program's, which SIGHUP would end
        return (
            "no broker runs from this folder on this machine: the change takes effect at its next"
            " start; if the files are copied to another machine, copy them again and reload there"
        )
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return f"the running broker could not be reloaded ({error.strerror}): run kill -HUP {pid}"
    return f"the running broker (process {pid}) reloads its files"
