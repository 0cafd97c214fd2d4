"""The enrolment service: its own broker, the registrar, and the fleet's register behind it."""

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
from broker.security.access_control import PID_FILE
from broker.security.fleet import Fleet, utc_now
from broker.security.reload_mosquitto import reload_mosquitto
from broker.service.service import Service
from fedge.errors import ConfigError

log = logging.getLogger(__name__)


class EnrolmentService(Service):
    """Gives certificates to devices with a token.

    Args:
        fleet: that they join.
        link: to the enrolment broker.
        for_s: ends by itself after so long; None: when it is stopped.
        check: called now and then; raises what ends the service.
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
        """The registrar's answer."""
        return self._registrar.handle(event, time.monotonic())

    def perform(self, action: Any) -> None:
        """Asks the register, or says something."""
        match action:
            case Note(text):
                log.warning("%s", text, extra={"event": "enrolment_refused"})
            case Redeem(session, secret, csr):
                self.dispatch(self._redeem(session, secret, csr))

    def wait_s(self) -> float:
        """Until the end, or until the broker is looked after again."""
        remaining_s = 1.0 if self._ends_s is None else self._ends_s - time.monotonic()
        return min(1.0, max(0.0, remaining_s))

    def wake(self) -> None:
        """Looks after the broker and the time."""
        self._check()
        if self._ends_s is not None and time.monotonic() >= self._ends_s:
            log.info("the time is over: no more devices are enrolled")
            self.stop()

    def _redeem(self, session: str, secret: str, csr: str) -> Granted | Refused:
        try:
            done = redeem(self._fleet, secret, csr, utc_now())
        except TokenRefused as error:
            return Refused(session, str(error))
        except ConfigError as error:
            # A full disk, a damaged register: not for strangers to read.
            log.error("no certificate was made: %s", error, extra={"event": "enrolment_failed"})
            return Refused(session, "the service cannot make a certificate: its log says why")
        self._say(done)
        return Granted(session, self._fleet.bundle(done.agent_id, done.certificate))

    def _say(self, done: Redeemed) -> None:
        if not done.is_new:
            log.info("%s asked again and has the same certificate", done.agent_id)
            return
        log.info(
            "%s is enrolled, certificate %s",
            done.agent_id,
            done.serial,
            extra={"event": "enrolled", "agent_id": done.agent_id},
        )
        if done.revoked:
            pid_file = self._fleet.broker_folder / PID_FILE
            log.info("its earlier certificates are revoked: %s", reload_mosquitto(pid_file))


def serve_enrolment(fleet: Fleet, for_s: float | None) -> None:
    """Serves until SIGTERM, SIGINT or the end of `for_s`.

    Raises:
        ConfigError: Mosquitto is missing or does not start.
        LinkError: its broker ended.
    """
    with EnrolmentBroker(fleet) as broker:
        # The id is a secret: whoever knew it could take the connection's place.
        client_id = f"fedge-enrolment-{secrets.token_hex(16)}"
        link = MqttLink(broker.settings, client_id, session_expiry_s=0)
        EnrolmentService(fleet, link, for_s, broker.check).run()
