"""Enrolment service: runs its broker and the registrar, and redeems tokens in the fleet."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from broker.enrolment.broker import EnrolmentBroker
from broker.enrolment.invitations import Redeemed, TokenRefused, redeem
from broker.enrolment.registrar import Granted, Note, Redeem, Refused, Registrar
from broker.link.link import Link
from broker.link.mqtt import MqttLink
from broker.security.fleet import Fleet, utc_now
from broker.security.running_broker import update_broker
from broker.service.service import Service
from fedge.errors import ConfigError, LinkError

log = logging.getLogger(__name__)


class EnrolmentService(Service):
    """Issues certificates to devices with a token.

    Args:
        fleet: the devices' fleet.
        link: link to the enrolment broker.
        for_s: running time; None: until stopped.
        check: called every second; an exception of it ends the service.
    """

    def __init__(
        self, fleet: Fleet, link: Link, for_s: float | None, check: Callable[[], None]
    ) -> None:
        super().__init__(link, give_up_s=15.0)
        self._fleet = fleet
        self._registrar = Registrar(fleet.register.federation, fleet.authority_certificate())
        self._ends_s = None if for_s is None else time.monotonic() + for_s
        self._check = check

    def handle(self, event: Any) -> Sequence[Any]:
        """Returns the registrar's actions."""
        return self._registrar.handle(event, time.monotonic())

    def perform(self, action: Any) -> None:
        """Redeems a token, or logs a warning."""
        match action:
            case Note(text):
                log.warning("%s", text, extra={"event": "enrolment_refused"})
            case Redeem(session, secret, csr):
                self.dispatch(self._redeem(session, secret, csr))

    def wait_s(self) -> float:
        """Returns the time until the end, or until the next check of the broker."""
        remaining_s = 1.0 if self._ends_s is None else self._ends_s - time.monotonic()
        return min(1.0, max(0.0, remaining_s))

    def wake(self) -> None:
        """Checks the broker and the time."""
        self._check()
        if self._ends_s is not None and time.monotonic() >= self._ends_s:
            log.info("enrolment time is over: service stops")
            self.stop()

    def _redeem(self, session: str, secret: str, csr: str) -> Granted | Refused:
        try:
            done = redeem(self._fleet, secret, csr, utc_now())
        except TokenRefused as error:
            return Refused(session, str(error))
        except ConfigError as error:
            # Strangers must not read details such as a full disk or a damaged register.
            log.error("certificate was not issued: %s", error, extra={"event": "enrolment_failed"})
            return Refused(session, "the service cannot issue a certificate: see its log")
        self._log(done)
        return Granted(session, self._fleet.bundle(done.agent_id, done.certificate))

    def _log(self, done: Redeemed) -> None:
        if not done.is_new:
            log.info("%s repeated its request and got the same certificate", done.agent_id)
            return
        log.info(
            "%s enrolled with certificate %s",
            done.agent_id,
            done.serial,
            extra={"event": "enrolled", "agent_id": done.agent_id},
        )
        if done.revoked:
            self._tell_the_broker(f"earlier certificates of {done.agent_id} revoked")

    def _tell_the_broker(self, change: str) -> None:
        try:
            log.info("%s: %s", change, update_broker(self._fleet))
        except LinkError as error:
            log.error("%s: %s", change, error, extra={"event": "broker_not_updated"})


def serve_enrolment(fleet: Fleet, for_s: float | None) -> None:
    """Serves until SIGTERM, SIGINT or the end of `for_s`.

    Raises:
        ConfigError: Mosquitto is missing or does not start.
        LinkError: the enrolment broker ended.
    """
    with EnrolmentBroker(fleet) as broker:
        # The id is secret: a client with the same id would take over the session.
        client_id = f"fedge-enrolment-{secrets.token_hex(16)}"
        link = MqttLink(broker.settings, client_id, session_expiry_s=0)
        EnrolmentService(fleet, link, for_s, broker.check).run()
