"""Makes a running Mosquitto read its access rules and revocations again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from broker.security.access_control import ACL_FILE, CONFIG_FILE, PLUGIN_FILE

_MAX_BYTES = 64 << 20
_RULES_LINE = re.compile(r"(?m)^(acl_file|plugin_opt_config_file)[ \t]+(/.*?)[ \t]*$")


def warn_if_moved(folder: Path) -> str:
    """Returns a warning if Mosquitto's configuration names other access rules; else empty.

    Its paths are absolute: in a fleet folder that was moved or copied they name the old place.
    """
    config = folder / CONFIG_FILE
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = _RULES_LINE.search(read_foreign(config).decode())
        if found is None:
            return ""
        here = folder / (ACL_FILE if found[1] == "acl_file" else PLUGIN_FILE)
        with contextlib.suppress(OSError):
            if Path(found[2]).samefile(here):
                return ""
        return (
            f"{config} names {found[2]}: was this fleet moved or copied? No broker reads its "
            "changes until you correct the paths there and start Mosquitto with that file"
        )
    return ""


def read_foreign(path: Path) -> bytes:
    """Reads a file in the folder of Mosquitto's account, which must not block root with a pipe.

    Raises:
        OSError: it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(_MAX_BYTES)


def pid_of(pid_file: Path) -> int:
    """Returns the process id of the Mosquitto that wrote `pid_file`; 0: it does not run here."""
    try:
        pid = int(read_foreign(pid_file))
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return 0
    return pid if name == "mosquitto" else 0  # a stale pid may be another program's


def reload_mosquitto(pid_file: Path) -> str:
    """Sends SIGHUP to the broker that wrote `pid_file`; returns a sentence on the result."""
    # A copied folder has a copy of the pid file: its broker would reload other rules.
    if warning := warn_if_moved(pid_file.parent):
        return warning
    pid = pid_of(pid_file)
    if not pid:  # SIGHUP would end another program
        return (
            "no broker runs from this folder on this machine: the change takes effect at its next"
            " start; if the files are copied to another machine, copy them again and reload there"
        )
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return f"the running broker could not be reloaded ({error.strerror}): run kill -HUP {pid}"
    return f"the running broker (process {pid}) reloads its files"
