"""Trust of an agent in messages: the coordinator's keys, and the highest message numbers.

Without a pinned key the agent accepts every message that the broker lets through. With one, a
message counts when a trusted key has signed it for its topic, and when it is no older than the
newest on that topic. Numbers are kept for each topic, since retained messages of different topics
arrive in any order; and on disk, since a device that was switched off must not accept an outdated
plan.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.protocol import ed25519, messages, signed_messages
from broker.protocol.messages import CoordinatorStatus, Count, PublicKey
from broker.protocol.topics import CoordinatorStatusTopic, InboxTopic, Topic, Topics
from fedge.errors import UntrustedError, WireError
from fedge.limits import is_power_of_two

log = logging.getLogger(__name__)

_REPEATED = "said before"

_Keys = Annotated[tuple[PublicKey, ...], Meta(max_length=signed_messages.MAX_KEYS)]


class TrustRecord(msgspec.Struct, frozen=True, kw_only=True):
    """State of the trust that must survive a restart.

    Attributes:
        pinned: keys of the configuration when the record was written.
        keys: trusted keys: the pinned ones, or those that they announced.
        numbers: highest message number by tail of the topic.
    """

    pinned: _Keys = ()
    keys: _Keys = ()
    numbers: Annotated[dict[str, Count], Meta(max_length=16)] = {}


class Trust:
    """Verifies the coordinator's messages by signature and number.

    Args:
        topics: of the federation.
        pinned: public keys, 32 bytes each; none: every message is accepted.
        record: of earlier instances.
    """

    def __init__(
        self, topics: Topics, pinned: tuple[bytes, ...], record: TrustRecord | None = None
    ) -> None:
        self._topics = topics
        self._pinned = tuple(key.hex() for key in pinned)
        self._keys = self._pinned
        self._numbers: dict[str, int] = {}
        if record is not None:
            self._remember(record)
        #: Receipts answer one update and no other: after a restart an old one does no harm.
        self._inbox_number = -1
        self._is_saved = True
        #: Number of untrusted messages since the start, by topic and reason.
        self.refusals: Counter[tuple[type[Topic], str]] = Counter()

    def _remember(self, record: TrustRecord) -> None:
        if record.pinned == self._pinned:
            self._keys = record.keys or self._pinned
        # Enrolled anew with other keys: whoever had the old ones may have used any number.
        if set(record.keys) & set(self._keys):
            self._numbers = dict(record.numbers)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Names of the trusted keys."""
        return tuple(signed_messages.key_id(bytes.fromhex(key)) for key in self._keys)

    def opened(self, topic: Topic, payload: bytes) -> bytes:
        """The message in a payload of the coordinator.

        Raises:
            UntrustedError: not signed by a trusted key for this topic, or older than another.
        """
        if not signed_messages.is_signed(topic):
            return payload
        message, envelope = signed_messages.split(payload)
        if self._keys:
            self._check(topic, message, envelope)
        return message

    def _check(self, topic: Topic, message: bytes, envelope: bytes) -> None:
        if not envelope:
            raise UntrustedError("not signed", "this device trusts signed messages only")
        try:
            found = signed_messages.parse(envelope)
        except WireError as error:
            raise UntrustedError("signature unreadable", str(error)) from error
        self._check_signature(self._topics.name(topic), message, found)
        self._check_number(topic, message, found.number)

    def _check_signature(
        self, name: str, message: bytes, found: signed_messages.SignatureEnvelope
    ) -> None:
        known = set(found.signatures).intersection(self.key_ids)
        if not known:
            theirs, ours = ", ".join(found.signatures), ", ".join(self.key_ids)
            raise UntrustedError(
                "signed by a key that this device does not trust",
                f"{theirs}; it trusts {ours}: forged, or enrol the device anew",
            )
        text = signed_messages.signed_bytes(name, found.number, message)
        for key, name_of_key in zip(self._keys, self.key_ids, strict=True):
            signature = bytes.fromhex(found.signatures.get(name_of_key, ""))
            if ed25519.is_valid(bytes.fromhex(key), text, signature):
                return
        raise UntrustedError("signature wrong", "forged, altered, or said in another place")

    def _check_number(self, topic: Topic, message: bytes, number: int) -> None:
        if isinstance(topic, InboxTopic):
            last = self._inbox_number
            self._inbox_number = max(last, number)
            if number == last:
                raise UntrustedError(_REPEATED, f"number {number}")
            is_old = number < last
        else:
            last = self._numbers.get(topic.tail, -1)
            is_old = number < last
        if isinstance(topic, CoordinatorStatusTopic) and _is_farewell(message):
            return  # a will is made before what it follows; played again it can only hold us up
        if is_old:
            raise UntrustedError("older than one seen before", f"number {number}, seen {last}")
        if not isinstance(topic, InboxTopic) and number > last:
            self._numbers[topic.tail] = number
            self._is_saved = False

    def announced(self, status: CoordinatorStatus) -> bool:
        """Trust the keys that a trusted one announces; whether they are others than before."""
        if not self._keys or not status.keys or status.state != "online":
            return False
        if set(status.keys) == set(self._keys):
            return False
        self._keys = status.keys
        self._is_saved = False
        log.info(
            "the coordinator signs with %s from now on",
            " and ".join(self.key_ids),
            extra={"event": "keys_changed"},
        )
        return True

    def refused(self, topic: Topic, error: UntrustedError) -> None:
        """Counts and tells of a message that was not believed; seldom when there are many."""
        if error.reason == _REPEATED:
            log.debug("%s: %s", self._topics.name(topic), error)  # brokers do that, too
            return
        kind = (type(topic), error.reason)
        self.refusals[kind] += 1
        count = self.refusals[kind]
        if is_power_of_two(count):  # a flood must not fill the log
            log.warning(
                "message on %s refused, %s%s",
                self._topics.name(topic),
                error,
                f" ({count} such messages so far)" if count > 1 else "",
                extra={"event": "untrusted", "reason": error.reason},
            )

    def unsaved(self) -> TrustRecord | None:
        """Returns the record to save before the last message is acted on; None: it is saved."""
        if self._is_saved:
            return None
        self._is_saved = True
        return TrustRecord(pinned=self._pinned, keys=self._keys, numbers=dict(self._numbers))


def _is_farewell(message: bytes) -> bool:
    return messages.decode(message, CoordinatorStatus).state == "offline"
