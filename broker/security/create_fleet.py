"""Creates the folder of a new fleet: certificates, access rules, keys."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from broker.security import access_control
from broker.security.certificate_authority import Authority
from broker.security.fleet import LIST_BACKDATED, Fleet
from broker.security.fleet_layout import (
    CENTRAL_DAYS,
    COORDINATOR_FOLDER,
    IDENTITY_FILE,
    SIGNING_FILE,
    fill,
)
from broker.security.fleet_settings import FleetSettings
from broker.security.register import Register, record_of
from broker.security.signing import SigningKeys
from fedge.errors import ConfigError
from fedge.files import (
    Account,
    sync_folder,
    write_whole,
)


def create_fleet(folder: Path, settings: FleetSettings, now: datetime) -> Fleet:
    """Creates a fleet folder completely, or not at all.

    Raises:
        ConfigError: the folder is in use, or cannot be written.
    """
    # Resolved: the finished folder is renamed into place, which would not replace a symbolic link.
    folder = Path(os.path.realpath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty and holds no fleet: choose another folder")
    if folder.is_mount():
        raise ConfigError(f"{folder} is a mount point: choose a folder below it")
    account = _account(settings.user)
    root = Authority.create(settings.federation, now)
    authority = Authority(root.certificate, root.key)
    signing = SigningKeys.generate()
    login = access_control.new_login(access_control.COORDINATOR)
    coordinator = authority.issue(login, "client", now, CENTRAL_DAYS)
    register = Register(
        federation=settings.federation,
        hosts=tuple(settings.hosts),
        port=settings.port,
        bind=settings.bind,
        user=account.name,
        list_updated=now - LIST_BACKDATED,
        signing_keys=signing.names,
        coordinator=(record_of(access_control.COORDINATOR, login, coordinator),),
        enrolment_port=settings.enrols_on,
        websockets=settings.websockets,
        plugin=settings.plugin,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        fill(partial, folder, register, root, account, now)
        identity = coordinator.certificate + coordinator.key
        write_whole(partial / COORDINATOR_FOLDER / IDENTITY_FILE, identity)
        write_whole(partial / COORDINATOR_FOLDER / SIGNING_FILE, signing.encode())
        partial.replace(folder)  # replaces an empty folder, too
        sync_folder(folder.parent)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Fleet(folder)


def _account(name: str) -> Account:
    """Returns Mosquitto's account, which must be able to read its files.

    Raises:
        ConfigError: no such account, or this process cannot give it files.
    """
    if not name:
        return _usual_account()
    account = Account.named(name)
    if os.geteuid() not in (0, account.uid):
        raise ConfigError(
            f"--user {name}: only root can give another account its files; use sudo, or leave "
            "--user out and start Mosquitto yourself"
        )
    return account


def _usual_account() -> Account:
    if os.geteuid() != 0:
        return Account.current()
    with contextlib.suppress(ConfigError):
        return Account.named("mosquitto")  # Mosquitto's account when root starts it
    raise ConfigError(
        "there is no user mosquitto on this machine: name Mosquitto's account with --user"
    )
