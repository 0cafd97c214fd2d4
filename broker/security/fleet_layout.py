"""Layout of a fleet folder, and the files in it that follow from the register.

DIR/fleet.json     register: every certificate ever signed (no keys)
DIR/authority/     the authority's key: the fleet's master key
DIR/broker/        all files that Mosquitto reads; no key in it signs certificates
DIR/coordinator/   certificate and key of the coordinator, and its signing keys
DIR/bundles/       bundles of devices, until they are copied to the devices
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from broker.security import access_control
from broker.security.certificate_authority import Authority, Issued
from broker.security.mosquitto import dynamic_security
from broker.security.mosquitto.config import ListenerSettings, mosquitto_config
from broker.security.mosquitto.reload import read_foreign
from broker.security.register import Register, all_members, members
from fedge.errors import ConfigError
from fedge.files import Account, make_private_folder, write_whole

REGISTER_FILE = "fleet.json"
AUTHORITY_FOLDER, BROKER_FOLDER = "authority", "broker"
COORDINATOR_FOLDER, BUNDLE_FOLDER = "coordinator", "bundles"
CA_KEY_FILE = "ca.key"
IDENTITY_FILE = "coordinator.pem"
SIGNING_FILE = "signing.key"
#: Folders that Mosquitto's account owns.
_BROKER_FOLDERS = (access_control.DATA_FOLDER, access_control.LISTS_FOLDER)
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
    folders = [partial / BROKER_FOLDER / name for name in _BROKER_FOLDERS]
    for made in folders:
        make_private_folder(made)
    authority = Authority(root.certificate, root.key)
    write_whole(partial / AUTHORITY_FOLDER / CA_KEY_FILE, root.key)
    write_whole(partial / AUTHORITY_FOLDER / access_control.CA_FILE, root.certificate)
    server = broker_identity(authority, register.hosts, now)
    listener = ListenerSettings(
        register.port, register.bind, register.user, register.websockets, register.plugin
    )
    config = mosquitto_config(folder / BROKER_FOLDER, listener)
    for name, content in (
        (access_control.CA_FILE, root.certificate),
        (access_control.SERVER_FILE, server),
        (access_control.CONFIG_FILE, config.encode()),
    ):
        write_whole(partial / BROKER_FOLDER / name, content, owner=account)
    write_whole(partial / COORDINATOR_FOLDER / access_control.CA_FILE, root.certificate)
    write_derived(partial, register, authority, account)
    publish_list(partial, authority)
    write_whole(partial / REGISTER_FILE, msgspec.json.encode(register))
    if account.uid != os.geteuid():
        for path in (*folders, partial / BROKER_FOLDER):
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
    issued = (*register.coordinator, *register.devices)
    revoked = [(r.serial, r.revoked) for r in issued if r.revoked is not None]
    crl = authority.revocations(revoked, register.list_updated)
    if register.plugin:
        # A running Mosquitto writes this file too: `update_broker` gives it the rules.
        rules = folder / BROKER_FOLDER / access_control.PLUGIN_FILE
        content = _plugin_file(register, rules)
    else:
        rules = folder / BROKER_FOLDER / access_control.ACL_FILE
        note = "Written by `fedge broker`; the next enrolment overwrites manual changes."
        content = access_control.access_rules(register.federation, members(register), note).encode()
    write_whole(rules, content, owner=account)
    write_whole(folder / BROKER_FOLDER / access_control.CRL_FILE, crl, owner=account)


def _plugin_file(register: Register, path: Path) -> bytes:
    want = dynamic_security.wanted(register.federation, members(register))
    known = {member.login for member in all_members(register)}
    before = b""
    with contextlib.suppress(OSError):  # a new fleet
        before = read_foreign(path)
    return dynamic_security.plugin_file(want, known, before)


def publish_list(folder: Path, authority: Authority) -> None:
    """Lets a running Mosquitto find the present list of revoked certificates.

    OpenSSL looks into the folder at each handshake for files that it has not read yet, numbered
    without gaps, and uses the newest list it knows. All of them are links to the one list: a broker
    that starts reads it once. `fedge broker run` and the systemd unit leave the first link only.

    Raises:
        ConfigError: the link cannot be made.
    """
    lists = folder / BROKER_FOLDER / access_control.LISTS_FOLDER
    target = f"../{access_control.CRL_FILE}"
    try:
        number = sum(1 for _ in lists.glob(f"{authority.list_name}.r*"))
        (lists / f"{authority.list_name}.r{number}").symlink_to(target)
    except OSError as error:
        raise ConfigError(f"{lists} cannot be written: {error.strerror}") from error


def forget_lists(folder: Path) -> None:
    """Leaves one link to the list of revoked certificates. Only while no broker runs.

    Raises:
        ConfigError: a link cannot be removed.
    """
    lists = folder / BROKER_FOLDER / access_control.LISTS_FOLDER
    try:
        for link in lists.glob("*.r*"):
            if link.suffix != ".r0":
                link.unlink()
    except OSError as error:
        raise ConfigError(f"{lists} cannot be changed: {error.strerror}") from error
