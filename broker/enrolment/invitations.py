"""Tokens of a fleet: makes, withdraws and redeems them.

The fleet stores only the SHA-256 of a token's secret. A token is valid once. A device that repeats
its request with the same key (lost answer, power cut) gets the same certificate again, which is
useless without that key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from broker.enrolment.token import Token, digest_of, fingerprint, new_secret
from broker.security.access_control import new_login
from broker.security.certificate_authority import key_digest, requested_key
from broker.security.devices import check_enrolled, check_new
from broker.security.fleet import Fleet
from broker.security.register import Invitation, Register, record_of, with_revoked, with_withdrawn
from fedge.errors import ConfigError

#: How long an expired invitation is kept.
_REMEMBERED = timedelta(days=30)


class TokenRefused(ConfigError):
    """A token is refused; the text tells why and what to do."""


@dataclass(frozen=True)
class Redeemed:
    """Result of redeeming a token.

    Attributes:
        agent_id: the device.
        serial: serial of its certificate.
        certificate: PEM.
        is_new: False: the certificate was issued before, for the same key.
        revoked: earlier certificates were revoked: the broker must reload.
    """

    agent_id: str
    serial: str
    certificate: str
    is_new: bool
    revoked: bool


def invite(
    fleet: Fleet, agent_id: str, now: datetime, valid: timedelta, days: int, **options: bool
) -> Token:
    """Makes a token for one device; arguments and errors as `invite_all`."""
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
) -> list[Token]:
    """Makes a token for each device, or none; withdraws earlier tokens of the devices.

    Writes the access rules of new devices now, so that the broker needs no reload when a token is
    used: until then no valid certificate has the name.

    Args:
        fleet: the devices' fleet.
        agent_ids: names of the devices.
        now: the time.
        valid: validity of the tokens.
        days: validity of the certificates.
        replaces: the devices are enrolled: a rotation.
        keep_old: their earlier certificates stay valid.

    Raises:
        ConfigError: a name is not allowed, is enrolled (or, with `replaces`, is not), or a
            file cannot be written; then no token is made.
    """
    with fleet.changing() as register:
        if replaces:
            for agent_id in agent_ids:
                check_enrolled(fleet, agent_id)
                if register.valid_records(agent_id)[-1].observer:
                    raise ConfigError(f"{agent_id} is an observer: tokens are for devices")
        else:
            check_new(register, agent_ids)
        ca = fingerprint(fleet.authority_certificate())
        where = (register.hosts[0], register.enrolment_port, register.federation)
        tokens = [Token(*where, agent_id, new_secret(), ca) for agent_id in agent_ids]
        kept = tuple(i for i in register.invitations if now - i.expires < _REMEMBERED)
        for agent_id in agent_ids:
            kept = with_withdrawn(kept, agent_id)
        made = (
            Invitation(
                agent_id=token.agent_id,
                login=new_login(token.agent_id),
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
    """Withdraws a device's open token; its certificates stay valid.

    Raises:
        ConfigError: the device has no open token, or a file cannot be written.
    """
    with fleet.changing() as register:
        open_ones = [i for i in register.invitations if i.state(now) == "open"]
        if not any(i.agent_id == agent_id for i in open_ones):
            raise ConfigError(f"{agent_id[:80]!r} has no open token in {fleet.folder}")
        fleet.save(now, invitations=with_withdrawn(register.invitations, agent_id))


def redeem(fleet: Fleet, secret: str, request: str, now: datetime) -> Redeemed:
    """Issues a certificate for a token's secret.

    Args:
        fleet: the fleet that made the token.
        secret: secret of the token.
        request: certificate request, PEM (PKCS #10).
        now: the time.

    Raises:
        TokenRefused: the token is unknown, used, withdrawn, expired, or does not fit the device's
            present state; or the request is damaged.
        ConfigError: a file cannot be written; then the token is still valid.
    """
    with fleet.changing() as register:
        invitation = _find(register.invitations, secret)
        try:
            key = key_digest(requested_key(request))
        except ConfigError as error:  # the device's error, so it may be told
            raise TokenRefused(f"{error}; the token is still valid") from error
        if invitation.ended == "used" and invitation.key_sha256 == key:
            return _issued_before(register, invitation)
        _check_usable(register, invitation, now)
        issued = fleet.authority().certify(request, invitation.login, now, invitation.days)
        pem = issued.certificate.decode()
        used = msgspec.structs.replace(
            invitation, ended="used", key_sha256=key, serial=issued.serial, certificate=pem
        )
        devices = register.devices
        revokes = invitation.replaces and not invitation.keep_old
        if revokes:
            devices = with_revoked(devices, invitation.agent_id, now)
        others = tuple(used if i is invitation else i for i in register.invitations)
        devices = (*devices, record_of(invitation.agent_id, invitation.login, issued))
        fleet.save(now, devices=devices, invitations=others)
    return Redeemed(invitation.agent_id, issued.serial, pem, is_new=True, revoked=revokes)


def _find(invitations: tuple[Invitation, ...], secret: str) -> Invitation:
    digest = digest_of(secret)
    for invitation in invitations:
        if invitation.secret_sha256 == digest:
            return invitation
    raise TokenRefused(
        "this fleet did not make this token, deleted it after it expired, or it was copied wrongly"
    )


def _issued_before(register: Register, invitation: Invitation) -> Redeemed:
    if not any(r.serial == invitation.serial for r in register.valid_records(invitation.agent_id)):
        raise TokenRefused(f"{invitation.agent_id} was revoked meanwhile: ask for a new token")
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
        clocks = f"valid until {invitation.expires:%Y-%m-%d %H:%M} UTC, now {now:%Y-%m-%d %H:%M}"
        raise TokenRefused(f"the token of {name} has expired ({clocks}): ask for a new one")
    if state == "used":
        raise TokenRefused(
            f"the token of {name} was used with another key: ask for a new one; if you did not use "
            f"it, revoke {name}"
        )
    if state == "withdrawn":
        raise TokenRefused(f"the token of {name} was withdrawn: ask for a new one")
    if bool(register.valid_records(name)) != invitation.replaces:
        what = "was revoked" if invitation.replaces else "was enrolled in another way"
        raise TokenRefused(f"{name} {what} since the token was made: ask for a new one")
