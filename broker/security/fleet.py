"""Fleet folder on disk: reads and saves the register, and signs with the fleet's authority.

`devices`, `key_rotation` and `broker.enrolment.invitations` change a fleet through this class;
`fleet_layout` lists the files. Access rules and the list of revoked certificates follow from the
register and are written by every change, just before the register itself: an interrupted command
leaves nothing that the next command does not repair.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from broker.security import access_control
from broker.security.bundle import Bundle
from broker.security.certificate_authority import Authority
from broker.security.fleet_layout import (
    AUTHORITY_FOLDER,
    BROKER_FOLDER,
    CA_KEY_FILE,
    COORDINATOR_FOLDER,
    REGISTER_FILE,
    SIGNING_FILE,
    publish_list,
    write_derived,
)
from broker.security.fleet_settings import FleetSettings
from broker.security.register import Register
from broker.security.signing import SigningKeys
from fedge.errors import ConfigError
from fedge.files import Account, beside, locked, put_in_place, write_whole

log = logging.getLogger(__name__)

#: OpenSSL ignores a list of revoked certificates from the future; each must be newer than the last.
LIST_BACKDATED = timedelta(days=1)


def utc_now() -> datetime:
    """Returns the time in whole seconds, as certificates hold it."""
    return datetime.now(UTC).replace(microsecond=0)


class Fleet:
    """An existing fleet folder.

    Args:
        folder: made by `create_fleet`.

    Raises:
        ConfigError: the folder holds no fleet, or its register is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.register = self._read()

    def _read(self) -> Register:
        path = self.folder / REGISTER_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Register)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.folder} holds no fleet: make one with `fedge broker init`"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error

    @property
    def broker_folder(self) -> Path:
        """Folder of the files that Mosquitto reads."""
        return self.folder / BROKER_FOLDER

    @property
    def signing_file(self) -> Path:
        """File with the coordinator's signing keys, unless it was moved elsewhere."""
        return self.folder / COORDINATOR_FOLDER / SIGNING_FILE

    def check_same(self, settings: FleetSettings) -> None:
        """Checks that this fleet has the given settings; settings left at their default match all.

        Raises:
            ConfigError: federation, host, port, account or listening address differ.
        """
        register = self.register
        for what, here, wanted in (
            ("federation", register.federation, settings.federation),
            ("host", ",".join(register.hosts), ",".join(settings.hosts)),
            ("port", register.port, settings.port),
            ("WebSocket port", register.websockets, settings.websockets),
            ("enrolment port", register.enrolment_port, settings.enrolment_port),
            ("listening address", register.bind, settings.bind),
            ("account", register.user, settings.user),
            ("plugin", register.plugin, settings.plugin),
        ):
            if wanted and here != wanted:
                also = ", `fedge broker rotate-broker` for other names" if what == "host" else ""
                raise ConfigError(
                    f"{self.folder} holds a fleet with {what} {here or 'none'}, not {wanted}: "
                    f"nothing was changed; choose another folder for another fleet{also}"
                )

    # --- authority -------------------------------------------------------------------------------

    def authority(self) -> Authority:
        """Returns the fleet's certificate authority.

        Raises:
            ConfigError: its files cannot be read, or are damaged.
        """
        return Authority(
            self._authority_file(access_control.CA_FILE), self._authority_file(CA_KEY_FILE)
        )

    def authority_certificate(self) -> str:
        """Returns the authority's certificate, PEM.

        Raises:
            ConfigError: it cannot be read.
        """
        return self._authority_file(access_control.CA_FILE).decode()

    def _authority_file(self, name: str) -> bytes:
        path = self.folder / AUTHORITY_FOLDER / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error

    def bundle(self, agent_id: str, certificate: str, key: str = "") -> Bundle:
        """Returns a device's bundle; without `key` when the device made the key itself."""
        register = self.register
        return Bundle(
            federation=register.federation,
            agent_id=agent_id,
            host=register.hosts[0],
            port=register.port,
            websockets=register.websockets,
            ca=self.authority_certificate(),
            certificate=certificate,
            key=key,
            trusted_keys=register.signing_keys,
        )

    # --- changes ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def changing(self) -> Iterator[Register]:
        """Locks the fleet for one change; yields the register as it is on disk."""
        with locked(self.folder):
            self.register = self._with_signing_keys(self._read())
            yield self.register

    def _with_signing_keys(self, register: Register) -> Register:
        """Returns `register` with the keys of the signing file: a rotation may be incomplete."""
        keys = register.signing_keys
        if self.signing_file.exists():
            with contextlib.suppress(ConfigError):  # damaged: `rotate-key` reports it
                keys = SigningKeys.read(self.signing_file).names
        return msgspec.structs.replace(register, signing_keys=keys)

    def save(self, now: datetime, **changes: object) -> None:
        """Writes the changed register and the files that follow from it; only inside `changing`.

        Args:
            now: the time.
            changes: fields of the register.

        Raises:
            ConfigError: a file cannot be written; then the register is unchanged.
        """
        updated = self._list_time(now)
        register = msgspec.structs.replace(self.register, list_updated=updated, **changes)
        # The register last: it must not call a device revoked that the broker still admits.
        authority = self.authority()
        write_derived(self.folder, register, authority, Account.for_files(register.user))
        if _revoked(register) != _revoked(self.register):
            publish_list(self.folder, authority)
        data = msgspec.json.format(msgspec.json.encode(register), indent=1)
        write_whole(self.folder / REGISTER_FILE, data)
        self.register = register

    def save_with(self, files: Mapping[Path, bytes], now: datetime, **changes: object) -> None:
        """Saves the register together with files that hold new certificates and their keys.

        Raises:
            ConfigError: a file cannot be written; then register and files are unchanged.
        """
        # The files first: a certificate that the register does not know has no rights. They are
        # written beside the existing files, which stay in use when this fails.
        try:
            for path, data in files.items():
                write_whole(beside(path), data)
            self.save(now, **changes)
        except ConfigError:
            for path in files:
                beside(path).unlink(missing_ok=True)
            raise
        for path in files:
            put_in_place(path)

    def save_signing_keys(self, keys: SigningKeys, now: datetime) -> None:
        """Saves new signing keys for the coordinator and for every later bundle.

        Raises:
            ConfigError: a file cannot be written.
        """
        # The file first: bundles must not name a key that the coordinator does not have.
        write_whole(self.signing_file, keys.encode())
        self.save(now, signing_keys=keys.names)

    def _list_time(self, now: datetime) -> datetime:
        """Returns the time of the next list of revoked certificates: after the last, in the past.

        A list from the future would lock every device out until then.
        """
        later = self.register.list_updated + timedelta(seconds=1)
        if later <= now:
            return max(later, now - LIST_BACKDATED)
        log.warning(
            "the clock says %s, but this fleet was last changed on %s: if the clock is right,"
            " restart Mosquitto; otherwise set the clock and repeat this command",
            f"{now:%Y-%m-%d}",
            f"{later + LIST_BACKDATED:%Y-%m-%d}",
            extra={"event": "clock_went_back"},
        )
        return now - LIST_BACKDATED


def _revoked(register: Register) -> set[str]:
    every = (*register.coordinator, *register.devices)
    return {record.serial for record in every if record.revoked is not None}
