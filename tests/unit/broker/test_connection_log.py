"""What a service logs of its connection: the first of each kind, then fewer and fewer."""

from __future__ import annotations

import logging

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from broker.link import disconnect_reasons
from broker.link.link import Refused
from broker.service.connection_log import ConnectionLog, topic_class


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> ConnectionLog:
    caplog.set_level(logging.INFO)
    return ConnectionLog(Clock())


def test_a_connection_that_is_lost_again_and_again_is_logged_ever_more_rarely(
    log: ConnectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        log.up("", session_present=True)
        log.down(f"connection to broker b:1883 lost {number + 1} times")
    lines = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert len(lines) == 7  # the 1st, 2nd, 4th, 8th, 16th, 32nd and 64th
    assert lines[0] == "connection to broker b:1883 lost 1 times; trying again"
    assert lines[-1] == "connection to broker b:1883 lost 64 times (64 failures); trying again"
    assert caplog.text.count("connected again to our session") == 8  # the first, and after those


def test_a_connection_after_a_failure_that_was_logged_is_logged_whatever_came_between(
    log: ConnectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.up("", session_present=False)
    for reason in ("refused", "lost", "refused"):  # the 3rd is not logged
        log.down(reason)
    log.up("", session_present=False)
    assert [record.getMessage() for record in caplog.records][-1] == "connected"


def test_every_new_reason_is_logged(log: ConnectionLog, caplog: pytest.LogCaptureFixture) -> None:
    for reason in ("a", "b", "a", "b", "c", "a", "b", "a", "b"):
        log.down(reason)
    told = [record.getMessage()[0] for record in caplog.records]
    assert told == ["a", "b", "b", "c", "a"]  # the 4th and the 8th failure besides


def test_after_a_minute_of_connection_a_failure_is_news(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = ConnectionLog(clock)
    for _ in range(3):
        log.up("", session_present=False)
        clock.now_s += 61
        log.down("lost")
    assert [record.getMessage() for record in caplog.records if record.levelno > 20] == [
        "lost; trying again"
    ] * 3


def test_a_refusal_is_logged_once_of_each_kind_with_the_next_step(
    log: ConnectionLog, caplog: pytest.LogCaptureFixture
) -> None:
    for round_id in range(50):
        topic = f"fedge/v1/f/agents/pi-1/reports/{round_id}"
        log.refused(Refused(topic, "not authorised", "give this client the right"))
        log.refused(Refused(topic, "quota exceeded", "free some of it"))
    assert [record.getMessage() for record in caplog.records] == [
        "broker refuses messages on fedge/v1/f/agents/pi-1/reports/+ (not authorised):"
        " give this client the right",
        "broker refuses messages on fedge/v1/f/agents/pi-1/reports/+ (quota exceeded):"
        " free some of it",
    ]


def test_topics_of_a_kind_are_one_class() -> None:
    assert topic_class("fedge/v1/f/agents/pi-1/updates/12/0") == (
        "fedge/v1/f/agents/pi-1/updates/+/+"
    )
    assert topic_class(f"fedge/v1/f/blobs/{'ab' * 32}/7") == "fedge/v1/f/blobs/+/+"
    assert topic_class("fedge/v1/2024x/round") == "fedge/v1/2024x/round"


@pytest.mark.parametrize("packet", [PacketTypes.PUBACK, PacketTypes.PUBREC, PacketTypes.SUBACK])
def test_paho_reads_every_failure_code_in_every_acknowledgement(packet: int) -> None:
    for code in range(0x80, 0x100):
        read = ReasonCode(packet, identifier=code)
        assert (read.value, read.is_failure) == (code, True)


def test_negative_acknowledgements_have_names() -> None:
    names = [disconnect_reasons.negative(code) for code in (0x87, 0x95, 0x97, 0x99, 0xAB)]
    assert names == [
        "not authorised",
        "packet too large",
        "quota exceeded",
        "the payload has a wrong format",
        "reason code 0xAB",
    ]
