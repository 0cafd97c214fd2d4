"""A fleet's register: what it is, and every certificate that was ever signed; no keys."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from broker.protocol.messages import Id, PublicKey, Sha256

if TYPE_CHECKING:
    pass


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device's certificate. A device may have several, one after the other."""

    agent_id: Id
    serial: Annotated[str, Meta(pattern="^[0-9a-f]{1,40}$")]
    not_before: datetime
    not_after: datetime
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if now > self.not_after else "active"


def without(records: tuple[Record, ...], agent_id: str, now: datetime) -> tuple[Record, ...]:
    """The same certificates, with those of a name revoked."""
    return tuple(
        msgspec.structs.replace(record, revoked=now)
        if record.agent_id == agent_id and record.revoked is None
        else record
        for record in records
    )


class Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a fleet is and who belongs to it.

    `hosts[0]` is where devices find the broker; `signing_keys` are public, the newest first;
    `coordinator` has the certificates of the coordinator, as `devices` has theirs.
    """

    fedge_fleet: int = 1
    federation: Id
    hosts: Annotated[tuple[str, ...], Meta(min_length=1)]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    websockets: Annotated[int, Meta(ge=0, le=65_535)] = 0  # port; 0: none
    bind: str = ""
    user: str
    list_updated: datetime
    signing_keys: tuple[PublicKey, ...]
    enrolment_port: Annotated[int, Meta(ge=1, le=65_535)]
    coordinator: tuple[Record, ...]
    devices: tuple[Record, ...] = ()
    invitations: tuple[Invitation, ...] = ()


State = Literal["open", "used", "withdrawn", "expired"]


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One token.

    Attributes:
        agent_id: who it is for.
        secret_sha256: of its secret.
        made: when.
        expires: after this moment it is refused.
        days: that the certificate will be valid.
        replaces: it is for a device that is enrolled: a rotation.
        keep_old: that device's earlier certificates stay valid.
        ended: used or withdrawn; None while it may be used.
        key_sha256: of the public key that was certified.
        serial: of the certificate.
        certificate: PEM.
    """

    agent_id: Id
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
        """What may be done with it."""
        if self.ended is not None:
            return self.ended
        return "expired" if now > self.expires else "open"


def withdrawn(invitations: tuple[Invitation, ...], agent_id: str) -> tuple[Invitation, ...]:
    """The same, with the open ones of a device ended."""
    return tuple(
        msgspec.structs.replace(i, ended="withdrawn")
        if i.agent_id == agent_id and i.ended is None
        else i
        for i in invitations
    )
