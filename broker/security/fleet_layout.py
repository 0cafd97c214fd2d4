"""Layout of a fleet folder, and the files in it that follow from the register.

DIR/fleet.json     register: every certificate ever signed (no keys)
DIR/authority/     the authority's key: the fleet's master key
DIR/broker/        all files that Mosquitto reads; no key in it signs certificates
DIR/coordinator/   certificate and key of the coordinator, and its signing keys
DIR/bundles/       bundles of devices, until they are copied to the devices
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
#: Validity of the broker's and the coordinator's certificates: operators can reach these machines.
CENTRAL_DAYS = 3650


def fill(
    partial: Path,
    folder: Path,
    register: Register,
    root: Issued,
    account: Account,
    now: datetime,
) -> None:
    """Writes all files of a new fleet but the coordinator's keys.

    Args:
        partial: empty folder to write to.
        folder: final name of the folder, for Mosquitto's configuration.
        register: register of the fleet.
        root: certificate and key of the authority.
        account: Mosquitto's account.
        now: the time.

    Raises:
        ConfigError, OSError: a file cannot be written.
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
        # Mosquitto's account may enter its own folder and see nothing else.
        os.chown(partial, -1, account.gid)
        partial.chmod(0o710)


def broker_identity(authority: Authority, hosts: Sequence[str], now: datetime) -> bytes:
    """Makes a new certificate of the broker; returns it with its key, PEM."""
    issued = authority.issue("fedge broker", "server", now, CENTRAL_DAYS, hosts)
    return issued.certificate + issued.key


def write_derived(folder: Path, register: Register, authority: Authority, account: Account) -> None:
    """Writes access rules and the list of revoked certificates, as the register has them.

    Raises:
        ConfigError: a file cannot be written.
    """
    # By name, not by certificate: TLS refuses expired certificates before access rules apply.
    enrolled = {record.agent_id for record in register.devices if record.revoked is None}
    # Also invited devices, so that the broker needs no reload when they use their tokens.
    enrolled |= {invited.agent_id for invited in register.invitations if invited.ended is None}
    rules = access_control.access_rules(register.federation, enrolled)
    issued = (*register.coordinator, *register.devices)
    revoked = [(r.serial, r.revoked) for r in issued if r.revoked is not None]
    crl = authority.revocations(revoked, register.list_updated)
    write_whole(folder / BROKER_FOLDER / access_control.ACL_FILE, rules.encode(), owner=account)
    write_whole(folder / BROKER_FOLDER / access_control.CRL_FILE, crl, owner=account)
