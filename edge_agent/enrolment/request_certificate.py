"""Request of a certificate from a fleet's enrolment service, trusted in the second step only."""

from __future__ import annotations

import logging
import ssl
import tempfile
import time
from pathlib import Path
from random import Random

import msgspec

from broker.enrolment.messages import (
    MAX_ANSWER_BYTES,
    PER_SESSION,
    Answer,
    EnrolmentTopics,
    Request,
    decode_answer,
    new_session,
)
from broker.enrolment.token import Token, fingerprint
from broker.link.backoff import FullJitter
from broker.link.link import Link, LinkDown, LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings, TlsSettings
from broker.security.bundle import Bundle
from fedge.errors import ConfigError, LinkError, WireError

log = logging.getLogger(__name__)

#: An answer that does not come by then was lost with its connection.
_ASK_AGAIN_S = 5.0
#: Longest pause after the service said that it is busy: doubled from half a second, with jitter.
_BUSY_S, _LONGEST_BUSY_S = 0.5, 10.0
_START_IT = (
    "does `fedge broker serve-enrolment` run on the fleet's side? Try again with the same token"
)
_LATER = "try again later with the same token"


class _UnprovenTls(TlsSettings, frozen=True, kw_only=True):
    """TLS to an unverified server: for fetching what can be verified afterwards."""

    def context(self) -> ssl.SSLContext:
        """Returns a context of TLS 1.2 or newer that checks no certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


def ask_for_certificate(token: Token, csr: str, timeout_s: float) -> Bundle:
    """Shows the token; returns all that the device needs but its key.

    First the authority's certificate is fetched, from whoever answers, and compared with the
    token. Only to a server that this authority vouches for, under the token's host name, is the
    secret sent.

    Args:
        token: to use up.
        csr: PEM of the certificate request.
        timeout_s: how long to try.

    Raises:
        ConfigError: the token is refused, or whoever answers is of another fleet.
        LinkError: the service cannot be reached, or its certificate is not in order.
    """
    deadline_s = time.monotonic() + timeout_s
    authority = _ask(token, _UnprovenTls(), Request(), deadline_s).authority
    if not authority or fingerprint(authority) != token.authority:
        raise ConfigError(
            f"who answers on {token.address} is not of the fleet that made this token: "
            "nothing was sent to it"
        )
    with tempfile.TemporaryDirectory(prefix="fedge-enrol-") as folder:
        ca_file = Path(folder) / "ca.crt"
        ca_file.write_text(authority)
        request = Request(secret=token.secret, csr=csr)
        answer = _ask(token, TlsSettings(ca_file=str(ca_file)), request, deadline_s)
    if answer.refused or answer.bundle is None:
        raise ConfigError(f"refused: {answer.refused or 'without a reason'}")
    _check_granted(answer.bundle, token)
    return answer.bundle


def _check_granted(bundle: Bundle, token: Token) -> None:
    granted = (bundle.federation, bundle.agent_id, fingerprint(bundle.ca))
    if granted != (token.federation, token.agent_id, token.authority):
        raise ConfigError(f"the service answered with a certificate for {granted[:2]}: not taken")


def _ask(token: Token, tls: TlsSettings, request: Request, deadline_s: float) -> Answer:
    while (answer := _ask_in_a_session(token, tls, request, deadline_s)) is None:
        pass  # asked so often that this MQTT session is no longer served: open another
    return answer


def _ask_in_a_session(
    token: Token, tls: TlsSettings, request: Request, deadline_s: float
) -> Answer | None:
    session, topics = new_session(), EnrolmentTopics(token.federation)
    settings = BrokerSettings(
        host=token.host,
        port=token.port,
        tls=tls,
        max_payload_bytes=MAX_ANSWER_BYTES,
        backoff_max_s=_LONGEST_BUSY_S,
    )
    link = MqttLink(settings, session, session_expiry_s=0, flush_s=0.5)
    try:
        link.subscribe(topics.answer(session))
        link.open()
        payload = msgspec.json.encode(request)
        return _answer(link, topics.request(session), payload, settings.address, deadline_s)
    finally:
        link.close()


def _answer(link: Link, topic: str, payload: bytes, where: str, deadline_s: float) -> Answer | None:
    """Returns the service's answer; None: no answer comes any more in this MQTT session."""
    reason, is_up, ask_s = f"enrolment service {where} did not answer; {_START_IT}", False, 0.0
    left, pauses = PER_SESSION, FullJitter(_BUSY_S, _LONGEST_BUSY_S, Random())  # noqa: S311
    told = False
    while (now_s := time.monotonic()) < deadline_s:
        if is_up and now_s >= ask_s:
            if not left:
                return None
            link.publish(topic, payload)
            left, ask_s = left - 1, now_s + _ASK_AGAIN_S
        wait_s = ask_s - now_s if is_up else 1.0
        match link.poll(min(wait_s, deadline_s - now_s)):
            case LinkUp():
                is_up, ask_s = True, 0.0
                reason = f"{where} answers, but no enrolment service behind it; {_START_IT}"
            case LinkDown(why, refused, busy):
                if refused:
                    raise LinkError(why)
                is_up, reason = False, f"{why}; {_LATER if busy else _START_IT}"
                told = told or (busy and _tell_busy(where))
            case Received(_, data):
                answer = _decoded(data, where)
                if not answer.busy:
                    return answer
                reason = f"enrolment service {where} is busy with other devices; {_LATER}"
                told = told or _tell_busy(where)
                left, ask_s = left + 1, time.monotonic() + _BUSY_S + pauses.next_s()
    raise LinkError(reason)


def _tell_busy(where: str) -> bool:
    """Tells whoever waits for the command; returns True."""
    log.info("enrolment service %s is busy: waiting for it", where)
    return True


def _decoded(data: bytes, where: str) -> Answer:
    try:
        return decode_answer(data)
    except WireError as error:
        raise LinkError(f"{where} does not answer as an enrolment service: {error}") from error
