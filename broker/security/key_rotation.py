"""New keys for the coordinator and the broker.

The one that the coordinator signs with: old and new side by side, until every device knows. Those
that coordinator and broker connect with: devices know nothing of them but the authority that
certifies them, so they are changed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from broker.security.access_control import COORDINATOR, SERVER_FILE
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


def rotate_key(fleet: Fleet, now: datetime, *, at_once: bool = False) -> None:
    """Makes a new signing key.

    Args:
        fleet: whose.
        now: the time.
        at_once: the old one signs no more: it is lost, or in other hands. Devices then trust
            nothing until they are enrolled with a new bundle. Otherwise both sign until
            `finish_rotation`, so that devices learn the new one from the old one.

    Raises:
        ConfigError: the old key is not here, a rotation is under way, or something cannot be
            written.
    """
    with fleet.changing():
        keys = SigningKeys.generate()
        if not at_once:
            old = _keys_of(fleet)
            if len(old.public) > 1:
                raise ConfigError(
                    "a rotation of the signing key is under way: end it with --finish"
                )
            keys = old.after(keys)
        fleet.save_signing_keys(keys, now)


def finish_rotation(fleet: Fleet, now: datetime) -> None:
    """The newest key alone signs from now on.

    Raises:
        ConfigError: no rotation is under way, or something cannot be written.
    """
    with fleet.changing():
        keys = _keys_of(fleet)
        # The register of the disk still has two when an earlier end was cut short.
        known = Fleet(fleet.folder).register.signing_keys
        if len(keys.public) == 1 == len(known):
            raise ConfigError("no rotation of the signing key is under way")
        fleet.save_signing_keys(keys.newest(), now)


def rotate_certificate(fleet: Fleet, now: datetime) -> Path:
    """A new key and certificate for the coordinator; earlier ones are revoked.

    Returns:
        The file with both.

    Raises:
        ConfigError: something cannot be written; then the old ones count still.
    """
    path = fleet.folder / COORDINATOR_FOLDER / IDENTITY_FILE
    with fleet.changing() as register:
        issued = fleet.authority().issue(COORDINATOR, "client", now, CENTRAL_DAYS)
        earlier = with_revoked(register.coordinator, COORDINATOR, now)
        certificates = (*earlier, record_of(COORDINATOR, issued))
        identity = issued.certificate + issued.key
        fleet.save_with({path: identity}, now, coordinator=certificates)
    return path


def rotate_broker(fleet: Fleet, now: datetime, hosts: Sequence[str] = ()) -> None:
    """A new key and certificate for the broker.

    Args:
        fleet: whose.
        now: the time.
        hosts: names and addresses that it is for, and that bundles name from now on; none: as
            before. Devices that look for the broker under a name which is not among them refuse it.

    Raises:
        ConfigError: no host name, or something cannot be written; then the old ones stay.
    """
    for host in hosts:
        check_host(host)
    with fleet.changing() as register:
        names = tuple(hosts) or register.hosts
        identity = broker_identity(fleet.authority(), names, now)
        fleet.save_with({fleet.broker_folder / SERVER_FILE: identity}, now, hosts=names)


def _keys_of(fleet: Fleet) -> SigningKeys:
    path = fleet.signing_file
    if not path.exists():
        raise ConfigError(
            f"{path} is not here: bring it back from the coordinator's machine, since the old"
            " key vouches for the new one; if it is lost: --at-once"
        )
    return SigningKeys.read(path)
