"""Key rotation of the coordinator and the broker.

Signing keys overlap: the coordinator signs with the old and the new key until every device knows
the new one. TLS certificates of coordinator and broker are replaced at once: devices check only
that the fleet's authority signed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker.security.access_control import COORDINATOR, SERVER_FILE, new_login
from broker.security.certificate_authority import check_host
from broker.security.fleet import Fleet
from broker.security.fleet_layout import (
    CENTRAL_DAYS,
    COORDINATOR_FOLDER,
    IDENTITY_FILE,
    broker_identity,
)
from broker.security.register import record_of, with_revoked
from broker.security.signing import SigningKeys
from fedge.errors import ConfigError

#: Devices that are off for a night, or out of reach for a day's work, are back after it.
_OVERLAP = timedelta(days=1)


def rotate_key(fleet: Fleet, now: datetime, *, at_once: bool = False) -> None:
    """Makes a new signing key.

    Args:
        fleet: fleet of the coordinator.
        now: the time.
        at_once: the old key is lost or stolen and stops signing now; devices trust no message
            until they get a new bundle. Otherwise both keys sign until `finish_rotation`, so that
            devices learn the new key from messages signed with the old one.

    Raises:
        ConfigError: the old key is missing, a rotation is in progress, or a file cannot be
            written.
    """
    with fleet.changing():
        keys = SigningKeys.generate()
        if not at_once:
            old = _keys_of(fleet)
            if len(old.public) > 1:
                raise ConfigError(
                    "a rotation of the signing key is in progress: end it with --finish"
                )
            keys = old.with_newer(keys)
        fleet.save_signing_keys(keys, now)


def finish_rotation(fleet: Fleet, now: datetime, *, checked: bool = False) -> None:
    """Ends a rotation: only the newest key signs from now on.

    Args:
        fleet: fleet of the coordinator.
        now: the time.
        checked: whether a person saw that all devices trust the new key; else a rotation lasts
            a day at least.

    Raises:
        ConfigError: no rotation is in progress, it began less than a day ago, or a file cannot be
            written.
    """
    with fleet.changing():
        keys = _keys_of(fleet)
        # The register on disk still has two keys when an earlier `finish_rotation` was interrupted.
        known = Fleet(fleet.folder).register.signing_keys
        if len(keys.public) == 1 == len(known):
            raise ConfigError("no rotation of the signing key is in progress")
        if len(keys.public) > 1 and not checked:
            _check_age(fleet.signing_file, now)
        fleet.save_signing_keys(keys.newest(), now)


def rotate_certificate(fleet: Fleet, now: datetime) -> Path:
    """Makes a new key and certificate for the coordinator and revokes the earlier ones.

    Returns:
        Path of the file with both.

    Raises:
        ConfigError: a file cannot be written; then the old certificate stays valid.
    """
    path = fleet.folder / COORDINATOR_FOLDER / IDENTITY_FILE
    with fleet.changing() as register:
        login = new_login(COORDINATOR)
        issued = fleet.authority().issue(login, "client", now, CENTRAL_DAYS)
        earlier = with_revoked(register.coordinator, COORDINATOR, now)
        certificates = (*earlier, record_of(COORDINATOR, login, issued))
        identity = issued.certificate + issued.key
        fleet.save_with({path: identity}, now, coordinator=certificates)
    return path


def rotate_broker(fleet: Fleet, now: datetime, hosts: Sequence[str] = ()) -> None:
    """Makes a new key and certificate for the broker.

    Args:
        fleet: fleet of the broker.
        now: the time.
        hosts: names and addresses of the broker from now on, in its certificate and in new
            bundles; empty: unchanged. Devices that connect to any other name refuse the broker.

    Raises:
        ConfigError: not a host name, or a file cannot be written; then nothing changes.
    """
    for host in hosts:
        check_host(host)
    with fleet.changing() as register:
        names = tuple(hosts) or register.hosts
        identity = broker_identity(fleet.authority(), names, now)
        fleet.save_with({fleet.broker_folder / SERVER_FILE: identity}, now, hosts=names)


def _check_age(key_file: Path, now: datetime) -> None:
    """Raises ConfigError when both keys have signed for so short a time that devices missed it."""
    age = now - datetime.fromtimestamp(key_file.stat().st_mtime, UTC)
    if age < _OVERLAP:
        minutes = max(0, int(age.total_seconds() // 60))
        since = f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
        raise ConfigError(
            f"the new key was made {since} ago: devices that have not heard of it would trust "
            "nothing any more; see in `fedge coordinator status` that all trust it, then add "
            f"--checked (not needed after {_OVERLAP // timedelta(hours=1)} h)"
        )


def _keys_of(fleet: Fleet) -> SigningKeys:
    path = fleet.signing_file
    if not path.exists():
        raise ConfigError(
            f"{path} is missing: copy it back from the coordinator's machine, since the old key"
            " signs the new one; if the old key is lost, use --at-once"
        )
    return SigningKeys.read(path)
