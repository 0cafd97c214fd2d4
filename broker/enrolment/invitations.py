"""Tokens as the fleet keeps them: who was invited, until when, and what became of it.

Of a token's secret only the SHA-256 is kept. A token counts once; whoever comes with the same key
again (the answer was lost, the power was cut) gets the same certificate again, which is of no use
to anybody without that key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from broker.enrolment.token import Token, digest_of, fingerprint, new_secret
from broker.security.certificate_authority import key_digest, requested_key
from broker.security.devices import check_enrolled, check_new
from broker.security.fleet import Fleet
from broker.security.register import Invitation, Register, record_of, with_revoked, with_withdrawn
from fedge.errors import ConfigError

#: An invitation that has ended is listed so much longer.
_REMEMBERED = timedelta(days=30)


class TokenRefused(ConfigError):
    """A token that does not count; the text says why and what to do."""


@dataclass(frozen=True)
class Redeemed:
    """What a token was good for.

    Attributes:
        agent_id: whose.
        serial: of its certificate.
        certificate: PEM.
        is_new: False: the same certificate as before, to the same key.
        revoked: earlier certificates were revoked: the broker must be told.
    """

    agent_id: str
    serial: str
    certificate: str
    is_new: bool
    revoked: bool


def invite(
    fleet: Fleet, agent_id: str, now: datetime, valid: timedelta, days: int, **options: bool
) -> Token:
    """A token for one device; arguments and errors as of `invite_all`."""
    (token,) = invite_all(fleet, [agent_id], now, valid, days, **options)
    return token


def invite_all(
    fleet: Fleet,
    agent_ids: Sequence[str],
    now: datetime,
    valid: timedelta,
    days: int,
    *,
    replaces: bool = False,
    keep_old: bool = False,
    again: bool = False,
) -> list[Token]:
    """A token for each device, or none; earlier ones of the same devices end.

    New devices' access rules are made now, so that the broker need not be told when a token is
    used: until then no certificate that counts has that name.

    Args:
        fleet: to join.
        agent_ids: the devices' names.
        now: the time.
        valid: how long the tokens may be used.
        days: that the certificates will be valid.
        replaces: for devices that are enrolled: a rotation.
        keep_old: their earlier certificates stay valid.
        again: names of devices that were revoked may be taken, see `devices.check_new`.

    Raises:
        ConfigError: a name is not allowed, is enrolled already (or, with `replaces`, is not), was
            revoked, or something cannot be written; then there is no token.
    """
    with fleet.changing() as register:
        if replaces:
            for agent_id in agent_ids:
                check_enrolled(fleet, agent_id)
        else:
            check_new(register, agent_ids, again=again)
        ca = fingerprint(fleet.authority_certificate())
        where = (register.hosts[0], register.enrolment_port, register.federation)
        tokens = [Token(*where, agent_id, new_secret(), ca) for agent_id in agent_ids]
        kept = tuple(i for i in register.invitations if now - i.expires < _REMEMBERED)
        for agent_id in agent_ids:
            kept = with_withdrawn(kept, agent_id)
        made = (
            Invitation(
                agent_id=token.agent_id,
                secret_sha256=digest_of(token.secret),
                made=now,
                expires=now + valid,
                days=days,
                replaces=replaces,
                keep_old=keep_old,
            )
            for token in tokens
        )
        fleet.save(now, invitations=(*kept, *made))
    return tokens


def withdraw(fleet: Fleet, agent_id: str, now: datetime) -> None:
    """Ends a device's open token; the device itself stays as it is.

    Raises:
        ConfigError: there is none, or something cannot be written.
    """
    with fleet.changing() as register:
        open_ones = [i for i in register.invitations if i.state(now) == "open"]
        if not any(i.agent_id == agent_id for i in open_ones):
            raise ConfigError(f"{agent_id[:80]!r} has no open token in {fleet.folder}")
        fleet.save(now, invitations=with_withdrawn(register.invitations, agent_id))


def redeem(fleet: Fleet, secret: str, request: str, now: datetime) -> Redeemed:
    """A certificate for whoever has a token's secret.

    Args:
        fleet: whose register is asked, and changed.
        secret: of the token.
        request: PEM (PKCS #10) of the device's key.
        now: the time.

    Raises:
        TokenRefused: unknown, used, withdrawn, expired, not for what the device is now; or the
            request is damaged.
        ConfigError: something cannot be written; then the token may be used still.
    """
    with fleet.changing() as register:
        invitation = _found(register.invitations, secret)
        try:
            key = key_digest(requested_key(request))
        except ConfigError as error:  # the device's fault, so it may know
            raise TokenRefused(f"{error}; the token may still be used") from error
        if invitation.ended == "used" and invitation.key_sha256 == key:
            return _again(register, invitation)
        _check_usable(register, invitation, now)
        issued = fleet.authority().certify(request, invitation.agent_id, now, invitation.days)
        pem = issued.certificate.decode()
        used = msgspec.structs.replace(
            invitation, ended="used", key_sha256=key, serial=issued.serial, certificate=pem
        )
        devices = register.devices
        revokes = invitation.replaces and not invitation.keep_old
        if revokes:
            devices = with_revoked(devices, invitation.agent_id, now)
        others = tuple(used if i is invitation else i for i in register.invitations)
        devices = (*devices, record_of(invitation.agent_id, issued))
        fleet.save(now, devices=devices, invitations=others)
    return Redeemed(invitation.agent_id, issued.serial, pem, is_new=True, revoked=revokes)


def _found(invitations: tuple[Invitation, ...], secret: str) -> Invitation:
    digest = digest_of(secret)
    for invitation in invitations:
        if invitation.secret_sha256 == digest:
            return invitation
    raise TokenRefused("this fleet made no such token, or forgot it long ago")


def _again(register: Register, invitation: Invitation) -> Redeemed:
    if not any(r.serial == invitation.serial for r in register.valid_records(invitation.agent_id)):
        raise TokenRefused(f"{invitation.agent_id} was revoked since: ask for a new token")
    return Redeemed(
        invitation.agent_id,
        invitation.serial,
        invitation.certificate,
        is_new=False,
        revoked=False,
    )


def _check_usable(register: Register, invitation: Invitation, now: datetime) -> None:
    name, state = invitation.agent_id, invitation.state(now)
    if state == "expired":
        clocks = f"it ended {invitation.expires:%Y-%m-%d %H:%M} UTC, here it is {now:%H:%M}"
        raise TokenRefused(f"the token of {name} has expired ({clocks}): ask for a new one")
    if state == "used":
        raise TokenRefused(
            f"the token of {name} was used, by another key: if it was not you, revoke {name}; "
            "ask for a new one"
        )
    if state == "withdrawn":
        raise TokenRefused(f"the token of {name} was withdrawn: ask for a new one")
    if bool(register.valid_records(name)) != invitation.replaces:
        what = "was revoked" if invitation.replaces else "was enrolled in another way"
        raise TokenRefused(f"{name} {what} since the token was made: ask for a new one")
