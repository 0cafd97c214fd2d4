"""Makes a running broker follow the register: at run time with the plugin, else with SIGHUP."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from broker.security.access_control import PID_FILE
from broker.security.fleet import Fleet, utc_now
from broker.security.mosquitto import dynamic_security
from broker.security.mosquitto.control import Control, NoBroker, administrator_context
from broker.security.mosquitto.reload import pid_of, reload_mosquitto, warn_if_moved
from broker.security.register import all_members, members
from fedge.errors import LinkError
from fedge.files import locked, write_whole

_LOOPBACK = "127.0.0.1"
#: Validity of the administrator's certificate, which is made for one command and kept nowhere.
_ADMINISTRATOR_DAYS = 1


def update_broker(fleet: Fleet) -> str:
    """Gives the running broker the rules that follow from the register.

    A broker with an access-control file is sent SIGHUP. One with the dynamic security plugin is
    changed over MQTT, here or wherever the fleet's host names lead, and whoever lost its rights is
    disconnected.

    Returns:
        A sentence on what was done, or why nothing was.

    Raises:
        LinkError: the broker runs on this machine and does not do it.
    """
    pid_file = fleet.broker_folder / PID_FILE
    if not fleet.register.plugin:
        return reload_mosquitto(pid_file)
    if warning := warn_if_moved(fleet.broker_folder):
        return warning
    pid = pid_of(pid_file)
    register = fleet.register
    hosts = (register.bind or _LOOPBACK,) if pid else register.hosts
    with _context(fleet) as context, locked(fleet.folder):
        for host in hosts:
            try:
                with Control(host, register.port, context) as control:
                    return f"the running broker ({host}) {_follow(Fleet(fleet.folder), control)}"
            except NoBroker as error:
                reason = error
    if pid:
        raise LinkError(
            f"the broker runs here (process {pid}), and the change did not reach it: {reason}; "
            f"repeat it with `fedge broker sync {fleet.folder}`"
        )
    return (
        f"no broker runs from this folder on this machine, or at {', '.join(hosts)}: the change "
        "takes effect at its next start; if it runs elsewhere: `fedge broker sync` when it can be "
        "reached"
    )


def _follow(fleet: Fleet, control: Control) -> str:
    register = fleet.register
    want = dynamic_security.wanted(register.federation, members(register))
    known = {member.login for member in all_members(register)}
    commands = dynamic_security.commands(want, control.rights(), known)
    control.run(commands)
    return "has the change" if commands else "has it already"


@contextlib.contextmanager
def _context(fleet: Fleet) -> Iterator[ssl.SSLContext]:
    """Yields the TLS settings of an administrator, whose key lives as long as the block."""
    issued = fleet.authority().issue(
        dynamic_security.ADMINISTRATOR, "client", utc_now(), _ADMINISTRATOR_DAYS
    )
    with tempfile.TemporaryDirectory(prefix="fedge-administrator-") as folder:
        identity = Path(folder) / "identity.pem"  # the folder is readable by its owner only
        write_whole(identity, issued.certificate + issued.key)
        yield administrator_context(fleet.authority_certificate(), str(identity))
