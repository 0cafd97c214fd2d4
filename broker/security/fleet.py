"""A fleet: made, and changed by enrolling, rotating and revoking. `fleet_files` says what is where.

Access rules and the list of revoked certificates follow from the register and are written again
by every command, just before the register itself: a command that was cut short has changed nothing
that the next one does not put right.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from broker.security import access_control
from broker.security.access_control import check_device_id
from broker.security.bundle import Bundle, encode_bundle, read_bundle
from broker.security.certificate_authority import Authority, Issued
from broker.security.fleet_layout import (
    AUTHORITY_FOLDER,
    BROKER_FOLDER,
    BUNDLE_FOLDER,
    CA_KEY_FILE,
    COORDINATOR_FOLDER,
    REGISTER_FILE,
    SIGNING_FILE,
    write_derived,
)
from broker.security.fleet_settings import FleetSettings
from broker.security.register import Record, Register, withdrawn, without
from broker.security.signing import SigningKeys
from fedge.errors import ConfigError
from fedge.files import (
    Account,
    beside,
    locked,
    put_in_place,
    write_whole,
)

log = logging.getLogger(__name__)

#: A list of revoked certificates from the future is no list; each must be newer than the last.
LIST_BACKDATED = timedelta(days=1)


def utc_now() -> datetime:
    """The time as certificates know it: whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class Fleet:
    """A fleet's folder that is there.

    Args:
        folder: as `create_fleet` made it.

    Raises:
        ConfigError: there is no fleet in it, or its register is damaged.
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
        """What Mosquitto reads."""
        return self.folder / BROKER_FOLDER

    def check_same(self, settings: FleetSettings) -> None:
        """Whether this is the fleet that `settings` ask for.

        Raises:
            ConfigError: another federation, other hosts, another port, account or address to
                listen on: nothing is changed.
        """
        register = self.register
        for what, here, wanted in (
            ("federation", register.federation, settings.federation),
            ("host", ",".join(register.hosts), ",".join(settings.hosts)),
            ("port", register.port, settings.port),
            # Of these only what was asked for: what was not said is as it is.
            ("WebSocket port", register.websockets, settings.websockets),
            ("enrolment port", register.enrolment_port, settings.enrolment_port),
            ("address to listen on", register.bind, settings.bind),
            ("account", register.user, settings.user),
        ):
            if wanted and here != wanted:
                also = ", `fedge broker rotate-broker` for other names" if what == "host" else ""
                raise ConfigError(
                    f"{self.folder} holds a fleet with {what} {here or 'none'}, not {wanted}: "
                    f"nothing was changed; choose another folder for another fleet{also}"
                )

    # --- enrolment -------------------------------------------------------------------------------

    def enrol(
        self, agent_id: str, now: datetime, out: Path | None, days: int, *, again: bool = False
    ) -> Path:
        """Writes a new device's bundle and lets it in; returns where the bundle is.

        Raises:
            ConfigError: as `enrol_all`.
        """
        (path,) = self.enrol_all([agent_id], now, out, days, again=again)
        return path

    def enrol_all(
        self,
        agent_ids: Sequence[str],
        now: datetime,
        out: Path | None,
        days: int,
        *,
        again: bool = False,
    ) -> list[Path]:
        """Writes the bundles of new devices and lets them in: all of them, or none.

        Args:
            agent_ids: their names.
            now: the time.
            out: where the bundle of a single one goes; None: into the fleet's folder.
            days: that the certificates are valid.
            again: names of devices that were revoked may be taken, see `check_new`.

        Returns:
            Where the bundles are, one for each name.

        Raises:
            ConfigError: a name is not allowed or taken, or something cannot be written; then no
                device is enrolled, and bundles that were there before still are.
        """
        with self.changing() as register:
            self.check_new(agent_ids, again=again)
            return self._issue(agent_ids, register.devices, now, out, days)

    def rotate(
        self, agent_id: str, now: datetime, out: Path | None, days: int, *, keep_old: bool = False
    ) -> Path:
        """Writes a new bundle for an enrolled device.

        Args:
            agent_id: of the device.
            now: the time.
            out: where the bundle goes; None: into the fleet's folder.
            days: that the new certificate is valid.
            keep_old: the device's earlier certificates stay valid until the next rotation.

        Raises:
            ConfigError: not enrolled, or something cannot be written.
        """
        with self.changing():
            self.check_enrolled(agent_id)
            devices = self.register.devices if keep_old else self.without(agent_id, now)
            (path,) = self._issue([agent_id], devices, now, out, days)
            return path

    def revoke(self, agent_id: str, now: datetime) -> None:
        """Shuts a device out, with all its certificates and its token.

        Raises:
            ConfigError: not enrolled, or something cannot be written.
        """
        with self.changing() as register:
            known = {record.agent_id for record in register.devices}
            known |= {invited.agent_id for invited in register.invitations}
            if agent_id not in known:
                self.check_enrolled(agent_id)
            # Also when it was revoked before: whoever asks again wants to be sure.
            invitations = withdrawn(register.invitations, agent_id)
            self.save(now, devices=self.without(agent_id, now), invitations=invitations)

    # --- for who changes the register ------------------------------------------------------------

    @contextlib.contextmanager
    def changing(self) -> Iterator[Register]:
        """The register as it is now; nobody else changes it meanwhile."""
        with locked(self.folder):
            self.register = self._with_signing_keys(self._read())
            yield self.register

    def _with_signing_keys(self, register: Register) -> Register:
        """The same, with the keys that the coordinator signs with: a change may have been cut."""
        keys = register.signing_keys
        if self.signing_file.exists():
            with contextlib.suppress(ConfigError):  # damaged: `rotate-key` says so
                keys = SigningKeys.read(self.signing_file).names
        return msgspec.structs.replace(register, signing_keys=keys)

    @property
    def signing_file(self) -> Path:
        """What the coordinator signs with, unless it was carried elsewhere."""
        return self.folder / COORDINATOR_FOLDER / SIGNING_FILE

    def save_signing_keys(self, keys: SigningKeys, now: datetime) -> None:
        """Keys for the coordinator, and for every bundle from now on.

        Raises:
            ConfigError: something cannot be written.
        """
        # The file first: bundles must not name a key that nobody signs with.
        write_whole(self.signing_file, keys.encode())
        self.save(now, signing_keys=keys.names)

    def check_new(self, agent_ids: Sequence[str], *, again: bool = False) -> None:
        """Whether new devices may get these names.

        A revoked device that is still connected has no rights because its name has none. Given to
        a device again, the name has them again, and with it whoever is connected under it.

        Args:
            agent_ids: the names.
            again: whoever was connected under a revoked name is not any more.

        Raises:
            ConfigError: a name is not allowed, there twice, enrolled already, or (without
                `again`) was revoked.
        """
        known = {record.agent_id for record in self.register.devices}
        for agent_id in agent_ids:
            check_device_id(agent_id)
            if agent_ids.count(agent_id) > 1:
                raise ConfigError(f"{agent_id} is named twice: once is enough")
            if self.active(agent_id):
                raise ConfigError(
                    f"{agent_id} is enrolled already: `fedge broker rotate` makes a new bundle"
                )
            if agent_id in known and not again:
                raise ConfigError(
                    f"{agent_id} was revoked, and may be connected still with its old key, which "
                    "would get its rights back: take another name, or restart Mosquitto first and "
                    "say --again"
                )

    def active(self, agent_id: str) -> list[Record]:
        """A device's certificates that were not revoked."""
        return [r for r in self.register.devices if r.agent_id == agent_id and r.revoked is None]

    def check_enrolled(self, agent_id: str) -> None:
        """Whether there is such a device.

        Raises:
            ConfigError: there is none, or none any more.
        """
        check_device_id(agent_id)
        if not self.active(agent_id):
            known = any(r.agent_id == agent_id for r in self.register.devices)
            state = "was revoked" if known else "is not enrolled"
            raise ConfigError(f"{agent_id} {state} in {self.folder}")

    def without(self, agent_id: str, now: datetime) -> tuple[Record, ...]:
        """The register's certificates, with those of a device revoked."""
        return without(self.register.devices, agent_id, now)

    def _issue(
        self,
        agent_ids: Sequence[str],
        devices: tuple[Record, ...],
        now: datetime,
        out: Path | None,
        days: int,
    ) -> list[Path]:
        """Signs and lets in: `devices` is what stays of the register."""
        paths = [out or self.folder / BUNDLE_FOLDER / f"{name}.bundle" for name in agent_ids]
        for agent_id, path in zip(agent_ids, paths, strict=True):
            _check_replaceable(path, agent_id)
        authority, bundles = self.authority(), {}
        for agent_id, path in zip(agent_ids, paths, strict=True):
            issued = authority.issue(agent_id, "client", now, days)
            bundle = self.bundle(agent_id, issued.certificate.decode(), issued.key.decode())
            bundles[path] = encode_bundle(bundle)
            devices = (*devices, self.record(agent_id, issued))
        self.save_with(bundles, now, devices=devices)
        return paths

    @staticmethod
    def record(agent_id: str, issued: Issued) -> Record:
        """A certificate as the register has it."""
        return Record(
            agent_id=agent_id,
            serial=issued.serial,
            not_before=issued.not_before,
            not_after=issued.not_after,
        )

    def bundle(self, agent_id: str, certificate: str, key: str = "") -> Bundle:
        """What a device needs; without `key` when the device made it and keeps it."""
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

    def authority_certificate(self) -> str:
        """PEM.

        Raises:
            ConfigError: it cannot be read.
        """
        return self._secret(access_control.CA_FILE).decode()

    def authority(self) -> Authority:
        """Who signs.

        Raises:
            ConfigError: its files cannot be read, or are damaged.
        """
        return Authority(self._secret(access_control.CA_FILE), self._secret(CA_KEY_FILE))

    def _secret(self, name: str) -> bytes:
        path = self.folder / AUTHORITY_FOLDER / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error

    def save_with(self, files: Mapping[Path, bytes], now: datetime, **changes: object) -> None:
        """As `save`, with files that hold what the register then knows: certificates with keys.

        Raises:
            ConfigError: something cannot be written; then register and files are those of before.
        """
        # The files first: a certificate that the register does not know opens no door. Beside
        # those of before, which are the only ones that count when this fails.
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

    def save(self, now: datetime, **changes: object) -> None:
        """Puts a changed register on disk, and what follows from it; only while `changing`.

        Args:
            now: the time.
            changes: fields of the register.

        Raises:
            ConfigError: something cannot be written; then the register is the one of before.
        """
        updated = self._list_time(now)
        register = msgspec.structs.replace(self.register, list_updated=updated, **changes)
        # The register last: it must not call a device revoked whom the broker still lets in.
        write_derived(self.folder, register, self.authority(), Account.for_files(register.user))
        data = msgspec.json.format(msgspec.json.encode(register), indent=1)
        write_whole(self.folder / REGISTER_FILE, data)
        self.register = register

    def _list_time(self, now: datetime) -> datetime:
        """Of the next list of revoked certificates: later than the last, and not to come."""
        later = self.register.list_updated + timedelta(seconds=1)
        if later <= now:
            return max(later, now - LIST_BACKDATED)
        # A list that counts only from some day on shuts everybody out until then.
        log.warning(
            "this fleet was last changed when the clock said %s, and now it says %s: if that is"
            " right, restart Mosquitto; else set it, and do this again",
            f"{later + LIST_BACKDATED:%Y-%m-%d}",
            f"{now:%Y-%m-%d}",
            extra={"event": "clock_went_back"},
        )
        return now - LIST_BACKDATED


def _check_replaceable(path: Path, agent_id: str) -> None:
    """Only an older bundle of the same device may be written over."""
    if not path.exists():
        return
    if not path.is_file():  # reading it might never end
        raise ConfigError(f"{path} is no file: choose another --out")
    with contextlib.suppress(ConfigError):
        if read_bundle(path).agent_id == agent_id:
            return
    raise ConfigError(f"{path} exists and is no bundle of {agent_id}: choose another --out")
