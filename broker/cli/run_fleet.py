"""`fedge broker run DIR`: Mosquitto of a fleet, supervised."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from fedge.errors import ConfigError

if TYPE_CHECKING:
    from broker.security.register import Register

#: Ports below need a right that Mosquitto's account has not, and root drops after it took them.
_FREE_PORTS = 1024


def run_fleet_broker(folder: Path) -> None:
    """Runs the fleet's Mosquitto until SIGINT or SIGTERM; starts it again if it ends by itself.

    Raises:
        ConfigError: no fleet, no Mosquitto, it runs already, or it does not start.
    """
    from broker.local.broker import find_mosquitto
    from broker.local.supervisor import Supervisor
    from broker.security.access_control import CONFIG_FILE, PID_FILE
    from broker.security.fleet import Fleet
    from broker.security.fleet_layout import forget_lists
    from broker.security.mosquitto.reload import pid_of, warn_if_moved
    from fedge.open_files import raise_file_limit

    program = find_mosquitto()
    if program is None:
        raise ConfigError("Mosquitto is not installed: apt install mosquitto")
    fleet = Fleet(folder)
    if warning := warn_if_moved(fleet.broker_folder):
        raise ConfigError(warning)
    if pid := pid_of(fleet.broker_folder / PID_FILE):
        raise ConfigError(f"the broker of {fleet.folder} runs already (process {pid})")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    raise_file_limit()  # one file for each client
    config = fleet.broker_folder / CONFIG_FILE
    command = [*_bound(fleet.register), program, "-c", str(config)]
    try:
        Supervisor("Mosquitto", command, lambda: forget_lists(fleet.folder)).run(stop)
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"Mosquitto does not start with {config} (exit code {error.returncode}): "
            "see its messages above"
        ) from error


def _bound(register: Register) -> list[str]:
    """Returns the words before the command that end Mosquitto with this process."""
    from broker.local.child_process import bound_to_parent
    from fedge.files import Account

    if os.geteuid() != 0:
        return bound_to_parent(os.getpid())
    if min(register.port, register.websockets or register.port) < _FREE_PORTS:
        return []  # it changes to its account by itself, which ends the bond
    account = Account.named(register.user)
    return bound_to_parent(f"{os.getpid()}:{account.uid}:{account.gid}")
