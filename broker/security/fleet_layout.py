"""What is where in a fleet's folder, and what Mosquitto reads of it.

DIR/fleet.json     the register: every certificate ever signed (no keys)
DIR/authority/     the authority's key: whoever has it is the fleet
DIR/broker/        all that Mosquitto reads; nothing in it signs certificates
DIR/coordinator/   certificate and key of the coordinator, and the key that it signs with
DIR/bundles/       bundles of devices, until they are carried there
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from broker.security import access_control
from broker.security.access_control import ListenerSettings
from broker.security.certificate_authority import Authority, Issued
from broker.security.register import Register
from fedge.files import Account, make_private_folder, write_whole

REGISTER_FILE = "fleet.json"
AUTHORITY_FOLDER, BROKER_FOLDER = "authority", "broker"
COORDINATOR_FOLDER, BUNDLE_FOLDER = "coordinator", "bundles"
CA_KEY_FILE = "ca.key"
IDENTITY_FILE = "coordinator.pem"
SIGNING_FILE = "signing.key"
#: Of the broker's and the coordinator's certificates: they sit on machines that are looked after.
CENTRAL_DAYS = 3650


def fill(
    partial: Path,
    folder: Path,
    register: Register,
    root: Issued,
    account: Account,
    now: datetime,
) -> None:
    """All of a new fleet but the coordinator's keys.

    Args:
        partial: an empty folder.
        folder: what it will be called, for Mosquitto's configuration.
        register: of the fleet.
        root: the authority.
        account: of Mosquitto.
        now: the time.

    Raises:
        ConfigError, OSError: something cannot be written.
    """
    for name in (AUTHORITY_FOLDER, BROKER_FOLDER, COORDINATOR_FOLDER, BUNDLE_FOLDER):
        make_private_folder(partial / name)
    data = partial / BROKER_FOLDER / access_control.DATA_FOLDER
    make_private_folder(data)
    authority = Authority(root.certificate, root.key)
    write_whole(partial / AUTHORITY_FOLDER / CA_KEY_FILE, root.key)
    write_whole(partial / AUTHORITY_FOLDER / access_control.CA_FILE, root.certificate)
    server = broker_identity(authority, register.hosts, now)
    listener = ListenerSettings(register.port, register.bind, register.user, register.websockets)
    config = access_control.mosquitto_config(folder / BROKER_FOLDER, listener)
    for name, content in (
        (access_control.CA_FILE, root.certificate),
        (access_control.SERVER_FILE, server),
        (access_control.CONFIG_FILE, config.encode()),
    ):
        write_whole(partial / BROKER_FOLDER / name, content, owner=account)
    write_whole(partial / COORDINATOR_FOLDER / access_control.CA_FILE, root.certificate)
    write_derived(partial, register, authority, account)
    write_whole(partial / REGISTER_FILE, msgspec.json.encode(register))
    if account.uid != os.geteuid():
        for path in (data, partial / BROKER_FOLDER):
            os.chown(path, account.uid, account.gid)
        # Mosquitto's account may pass through to its own folder and see nothing else.
        os.chown(partial, -1, account.gid)
        partial.chmod(0o710)


def broker_identity(authority: Authority, hosts: Sequence[str], now: datetime) -> bytes:
    """A new certificate of the broker with its key, PEM."""
    issued = authority.issue("fedge broker", "server", now, CENTRAL_DAYS, hosts)
    return issued.certificate + issued.key


def write_derived(folder: Path, register: Register, authority: Authority, account: Account) -> None:
    """Access rules and the list of revoked certificates, as the register has it.

    Raises:
        ConfigError: they cannot be written.
    """
    # By name, not by certificate: one that has expired is refused before anyone asks for rules.
    enrolled = {record.agent_id for record in register.devices if record.revoked is None}
    # The invited, too: the broker need not be told when they come.
    enrolled |= {invited.agent_id for invited in register.invitations if invited.ended is None}
    rules = access_control.access_rules(register.federation, enrolled)
    issued = (*register.coordinator, *register.devices)
    revoked = [(r.serial, r.revoked) for r in issued if r.revoked is not None]
    crl = authority.revocations(revoked, register.list_updated)
    write_whole(folder / BROKER_FOLDER / access_control.ACL_FILE, rules.encode(), owner=account)
    write_whole(folder / BROKER_FOLDER / access_control.CRL_FILE, crl, owner=account)
