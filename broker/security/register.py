"""Register of a fleet: its settings, every certificate ever signed and every token; no keys."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from broker.protocol.messages import Id, PublicKey, Sha256
from broker.security.access_control import COORDINATOR, Kind, Member

if TYPE_CHECKING:
    from broker.security.certificate_authority import Issued


_Login = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,55}\.[0-9a-f]{8}\Z")]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Entry of one certificate. A device may have several certificates, one after the other.

    Attributes:
        agent_id: the device, the observer, or `coordinator`.
        login: name of the certificate, and so of its owner at the broker.
        observer: of somebody who reads results and takes no part.
        serial: hexadecimal.
        not_before, not_after: validity, UTC.
        revoked: time; None: not revoked.
    """

    agent_id: Id
    login: _Login
    observer: bool = False
    serial: Annotated[str, Meta(pattern="^[0-9a-f]{1,40}$")]
    not_before: datetime
    not_after: datetime
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        """Returns `active`, `revoked` or `expired`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if now > self.not_after else "active"


State = Literal["open", "used", "withdrawn", "expired"]


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Entry of one token.

    Attributes:
        agent_id: the device that may use the token.
        login: name of the certificate that it will get.
        secret_sha256: SHA-256 of the token's secret.
        made: time of creation.
        expires: the token is refused after this time.
        days: validity of the certificate.
        replaces: the device is enrolled already: the token rotates its certificate.
        keep_old: the device's earlier certificates stay valid.
        ended: used or withdrawn; None while the token may be used.
        key_sha256: SHA-256 of the public key that was certified.
        serial: serial of that certificate.
        certificate: that certificate, PEM.
    """

    agent_id: Id
    login: _Login
    secret_sha256: Sha256
    made: datetime
    expires: datetime
    days: Annotated[int, Meta(ge=1, le=36_500)]
    replaces: bool = False
    keep_old: bool = False
    ended: Literal["used", "withdrawn"] | None = None
    key_sha256: str = ""
    serial: str = ""
    certificate: str = ""

    def state(self, now: datetime) -> State:
        """Returns whether the token may be used, or how it ended."""
        if self.ended is not None:
            return self.ended
        return "expired" if now > self.expires else "open"


class Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings and members of one fleet.

    Attributes:
        fedge_fleet: version of the format.
        federation: the federation that the fleet belongs to.
        hosts: names and addresses of the broker; devices connect to the first.
        port: TLS port of the broker.
        websockets: WebSocket port; 0: none.
        bind: address of the broker's interface; empty: all interfaces.
        user: account that Mosquitto runs under.
        plugin: path of Mosquitto's dynamic security plugin; empty: an access-control file.
        list_updated: time of the last list of revoked certificates.
        signing_keys: public signing keys of the coordinator, the newest first.
        enrolment_port: port of the enrolment service.
        coordinator: certificates of the coordinator.
        devices: certificates of the devices.
        invitations: tokens.
    """

    fedge_fleet: int = 1
    federation: Id
    hosts: Annotated[tuple[str, ...], Meta(min_length=1)]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    websockets: Annotated[int, Meta(ge=0, le=65_535)] = 0
    bind: str = ""
    user: str
    plugin: str = ""
    list_updated: datetime
    signing_keys: tuple[PublicKey, ...]
    enrolment_port: Annotated[int, Meta(ge=1, le=65_535)]
    coordinator: tuple[Record, ...]
    devices: tuple[Record, ...] = ()
    invitations: tuple[Invitation, ...] = ()

    def valid_records(self, agent_id: str) -> list[Record]:
        """Returns a device's certificates that are not revoked."""
        return [r for r in self.devices if r.agent_id == agent_id and r.revoked is None]

    def has_record(self, agent_id: str) -> bool:
        """Returns whether a certificate was ever signed for a device."""
        return any(record.agent_id == agent_id for record in self.devices)


def record_of(agent_id: str, login: str, issued: Issued, *, observer: bool = False) -> Record:
    """Returns the entry of a new certificate."""
    return Record(
        agent_id=agent_id,
        login=login,
        observer=observer,
        serial=issued.serial,
        not_before=issued.not_before,
        not_after=issued.not_after,
    )


def members(register: Register) -> list[Member]:
    """Returns those who have rights at the broker.

    Invited devices too, so that the broker need not change when they use their tokens: until then
    no certificate has the name. Expired certificates too: TLS refuses them.
    """
    every = (*register.coordinator, *register.devices)
    valid = [_member_of(record) for record in every if record.revoked is None]
    return valid + [_invited(i) for i in register.invitations if i.ended is None]


def all_members(register: Register) -> list[Member]:
    """Returns everybody whom a certificate of this fleet names, or was to name."""
    every = (*register.coordinator, *register.devices)
    return [*map(_member_of, every), *map(_invited, register.invitations)]


def _member_of(record: Record) -> Member:
    kind: Kind = "observer" if record.observer else "agent"
    if record.agent_id == COORDINATOR:
        kind = "coordinator"
    return Member(record.login, kind, record.agent_id)


def _invited(invitation: Invitation) -> Member:
    return Member(invitation.login, "agent", invitation.agent_id)


def with_revoked(records: tuple[Record, ...], agent_id: str, now: datetime) -> tuple[Record, ...]:
    """Returns `records` with all certificates of `agent_id` revoked."""
    return tuple(
        msgspec.structs.replace(record, revoked=now)
        if record.agent_id == agent_id and record.revoked is None
        else record
        for record in records
    )


def with_withdrawn(invitations: tuple[Invitation, ...], agent_id: str) -> tuple[Invitation, ...]:
    """Returns `invitations` with the open token of `agent_id` withdrawn."""
    return tuple(
        msgspec.structs.replace(i, ended="withdrawn")
        if i.agent_id == agent_id and i.ended is None
        else i
        for i in invitations
    )
