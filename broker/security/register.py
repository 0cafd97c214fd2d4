"""A fleet's register: what it is, and every certificate that was ever signed; no keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.enrolment.invitations import Invitation
from broker.protocol.messages import Id, PublicKey


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
