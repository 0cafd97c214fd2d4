"""Devices of a fleet: enrols, rotates and revokes them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from broker.protocol.signed_messages import encode_public_keys
from broker.security.access_control import check_device_id, new_login
from broker.security.bundle import encode_bundle, read_bundle
from broker.security.fleet import Fleet
from broker.security.fleet_layout import BUNDLE_FOLDER
from broker.security.register import Record, Register, record_of, with_revoked, with_withdrawn
from fedge.errors import ConfigError
from fedge.files import make_private_folder


def enrol(
    fleet: Fleet,
    agent_id: str,
    now: datetime,
    out: Path | None,
    days: int,
) -> Path:
    """Enrols one device; returns the path of its bundle. Arguments and errors as `enrol_all`."""
    (path,) = enrol_all(fleet, [agent_id], now, out, days)
    return path


def enrol_all(
    fleet: Fleet,
    agent_ids: Sequence[str],
    now: datetime,
    out: Path | None,
    days: int,
) -> list[Path]:
    """Enrols devices and writes their bundles: all of them, or none.

    Args:
        fleet: the devices' fleet.
        agent_ids: names of the devices.
        now: the time.
        out: path of the bundle of a single device; None: in the fleet's folder.
        days: validity of the certificates.

    Returns:
        Path of each device's bundle.

    Raises:
        ConfigError: a name is not allowed or taken, or a file cannot be written; then no device is
            enrolled, and existing bundles are unchanged.
    """
    with fleet.changing() as register:
        check_new(register, agent_ids)
        return _issue(fleet, agent_ids, register.devices, now, out, days)


def enrol_observer(fleet: Fleet, name: str, now: datetime, out: Path | None, days: int) -> Path:
    """Enrols somebody who reads statuses and results and takes no part.

    Its certificate, key and the keys of authority and coordinator are files of their own in a
    folder, for programs that know nothing of fedge.

    Args:
        fleet: the observer's fleet.
        name: name of the observer; devices have others.
        now: the time.
        out: the folder; None: in the fleet's folder.
        days: validity of the certificate.

    Returns:
        Path of the folder.

    Raises:
        ConfigError: the name is not allowed or taken, or a file cannot be written; then nobody is
            enrolled.
    """
    with fleet.changing() as register:
        check_new(register, [name])
        return _issue_observer(fleet, name, register.devices, now, out, days)


def _issue_observer(
    fleet: Fleet,
    name: str,
    kept: tuple[Record, ...],
    now: datetime,
    out: Path | None,
    days: int,
) -> Path:
    folder = out or fleet.folder / BUNDLE_FOLDER / name
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: choose another --out")
    login = new_login(name)
    issued = fleet.authority().issue(login, "client", now, days)
    keys = encode_public_keys(map(bytes.fromhex, fleet.register.signing_keys))
    make_private_folder(folder)
    files = {
        folder / "ca.crt": fleet.authority_certificate().encode(),
        folder / "observer.crt": issued.certificate,
        folder / "observer.key": issued.key,
        folder / "coordinator.pub": keys,
    }
    record = record_of(name, login, issued, observer=True)
    fleet.save_with(files, now, devices=(*kept, record))
    return folder


def rotate(
    fleet: Fleet,
    agent_id: str,
    now: datetime,
    out: Path | None,
    days: int,
    *,
    keep_old: bool = False,
) -> Path:
    """Writes a new bundle for an enrolled device or observer; returns its path.

    Args:
        fleet: the device's fleet.
        agent_id: name of the device.
        now: the time.
        out: path of the bundle; None: in the fleet's folder.
        days: validity of the new certificate.
        keep_old: the device's earlier certificates stay valid until the next rotation.

    Raises:
        ConfigError: the device is not enrolled, or a file cannot be written.
    """
    with fleet.changing() as register:
        check_enrolled(fleet, agent_id)
        is_observer = register.valid_records(agent_id)[-1].observer
        kept = register.devices if keep_old else with_revoked(register.devices, agent_id, now)
        if is_observer:
            return _issue_observer(fleet, agent_id, kept, now, out, days)
        (path,) = _issue(fleet, [agent_id], kept, now, out, days)
        return path


def revoke(fleet: Fleet, agent_id: str, now: datetime) -> None:
    """Revokes a device: all its certificates and its open token.

    Raises:
        ConfigError: the device was never enrolled or invited, or a file cannot be written.
    """
    with fleet.changing() as register:
        is_invited = any(invited.agent_id == agent_id for invited in register.invitations)
        if not is_invited and not register.has_record(agent_id):
            check_enrolled(fleet, agent_id)
        # A device that is revoked already is revoked once more: the files are written again.
        devices = with_revoked(register.devices, agent_id, now)
        fleet.save(now, devices=devices, invitations=with_withdrawn(register.invitations, agent_id))


def check_new(register: Register, agent_ids: Sequence[str]) -> None:
    """Checks that new devices may have these names. A revoked device's name is free.

    Raises:
        ConfigError: a name is not allowed, listed twice, or enrolled.
    """
    for agent_id in agent_ids:
        check_device_id(agent_id)
        if agent_ids.count(agent_id) > 1:
            raise ConfigError(f"{agent_id} is listed twice: list each device once")
        if register.valid_records(agent_id):
            raise ConfigError(
                f"{agent_id} is enrolled already: `fedge broker rotate` makes a new bundle"
            )


def check_enrolled(fleet: Fleet, agent_id: str) -> None:
    """Checks that a device is enrolled.

    Raises:
        ConfigError: the device is unknown or revoked.
    """
    check_device_id(agent_id)
    if not fleet.register.valid_records(agent_id):
        state = "was revoked" if fleet.register.has_record(agent_id) else "is not enrolled"
        raise ConfigError(f"{agent_id} {state} in {fleet.folder}")


def _issue(
    fleet: Fleet,
    agent_ids: Sequence[str],
    kept: tuple[Record, ...],
    now: datetime,
    out: Path | None,
    days: int,
) -> list[Path]:
    """Signs a certificate for each device and adds them to the `kept` entries of the register."""
    paths = [out or fleet.folder / BUNDLE_FOLDER / f"{name}.bundle" for name in agent_ids]
    for agent_id, path in zip(agent_ids, paths, strict=True):
        _check_replaceable(path, agent_id)
    authority, bundles, devices = fleet.authority(), {}, kept
    for agent_id, path in zip(agent_ids, paths, strict=True):
        login = new_login(agent_id)
        issued = authority.issue(login, "client", now, days)
        bundle = fleet.bundle(agent_id, issued.certificate.decode(), issued.key.decode())
        bundles[path] = encode_bundle(bundle)
        devices = (*devices, record_of(agent_id, login, issued))
    fleet.save_with(bundles, now, devices=devices)
    return paths


def _check_replaceable(path: Path, agent_id: str) -> None:
    """Checks that `path` is free, or holds an older bundle of the same device."""
    if not path.exists():
        return
    if not path.is_file():  # reading a pipe might never end
        raise ConfigError(f"{path} is not a regular file: choose another --out")
    with contextlib.suppress(ConfigError):
        if read_bundle(path).agent_id == agent_id:
            return
    raise ConfigError(f"{path} exists and is not a bundle of {agent_id}: choose another --out")
