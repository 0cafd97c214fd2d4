"""Mosquitto's log in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.security.access_control import Kind, Member, may_read, may_write
from broker.security.create_fleet import create_fleet
from broker.security.fleet import utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.log_reader import RefusalReader
from broker.security.register import Record, Register
from fedge.command import cli
from fedge.files import Account

ROOT = "fedge/v1/houses/"
MALLORY = "mallory.3f2a19c0"
LOG = f"""\
2026-11-24T06:41:19: New client connected from 10.0.0.7:1 as {MALLORY} (p5, c1, k10, u'{MALLORY}').
2026-11-24T06:41:19: Will message specified (7 bytes) (r0, q1).
2026-11-24T06:41:19: \t{ROOT}agents/alice/status
2026-11-24T06:41:19: Received SUBSCRIBE from {MALLORY}
2026-11-24T06:41:19: \t{ROOT}agents/+/inbox (QoS 1)
2026-11-24T06:41:19: \t{ROOT}agents/mallory/inbox (QoS 1)
2026-11-24T06:41:19: {MALLORY} 1 {ROOT}agents/+/inbox
2026-11-24T06:41:19: {MALLORY} 1 {ROOT}agents/mallory/inbox
2026-11-24T06:41:19: Denied PUBLISH from {MALLORY} (d0, q1, r1, m2, '{ROOT}round', ... (6 bytes))
2026-11-24T06:41:19: Received PUBLISH from {MALLORY} (d0, q1, r0, m3, '{ROOT}x', ... (6 bytes))
"""


def member(name: str) -> Member:
    kinds: dict[str, Kind] = {"coordinator": "coordinator", "observer": "observer"}
    kind = kinds.get(name, "agent")
    return Member(f"{name}.00000000", kind, name)


def register_of(*names: str) -> Register:
    now = utc_now()
    devices = tuple(
        Record(agent_id=name, login=f"{name}.3f2a19c0", serial="1", not_before=now, not_after=now)
        for name in names
    )
    return Register(
        federation="houses",
        hosts=("localhost",),
        port=8883,
        user="mosquitto",
        list_updated=now,
        signing_keys=(),
        enrolment_port=8884,
        coordinator=(),
        devices=devices,
    )


def read(text: str) -> list[str]:
    reader = RefusalReader(register_of("mallory", "alice"))
    return [said for line in text.splitlines() if (said := reader.read(line))]


def test_forbidden_actions_are_reported_and_allowed_ones_are_not() -> None:
    assert read(LOG) == [
        f"mallory left a will on {ROOT}agents/alice/status: broker will not publish it,"
        " no right to write",
        f"mallory subscribed to {ROOT}agents/+/inbox: broker delivers only what mallory may read",
        f"mallory published 6 bytes on {ROOT}round: refused, no right to write",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "Client connection from 10.0.0.9 failed: error:0A0000C7:SSL routines::"
            "peer did not return a certificate.",
            "a connection from 10.0.0.9 was refused: client sent no certificate",
        ),
        (
            "OpenSSL Error[0]: error:0A000086:SSL routines::certificate verify failed",
            "a connection was refused: client certificate is foreign, expired, not yet valid or",
        ),
        ("Client m disconnected due to oversize packet.", "m was disconnected: packet larger than"),
        ("Client m [10.0.0.9:1] disconnected: Packet too large.", "packet larger than max_packet"),
        ("Client m already connected, closing old connection.", "is its key on two machines?"),
        ("Client m [10.0.0.9:1] disconnected: session taken over.", "on two machines?"),
        ("Client <unknown> disconnected, not authorised.", "not authorised"),
        (
            "Client connection from 1.2.3.4 denied: max_connections exceeded.",
            "max_connections",
        ),
    ],
)
def test_refused_connections_are_reported(line: str, words: str) -> None:
    text = f"2026-11-24T06:41:19: {line}"
    (said,) = read(text)
    assert words in said


def test_repeated_refusals_are_counted() -> None:
    line = f"Denied PUBLISH from m (d0, q1, r1, m2, '{ROOT}round', ... (6 bytes))\n"
    said = read(line * 9)
    assert [text.rpartition(" (")[2] for text in said[1:]] == ["2 times)", "4 times)", "8 times)"]


@pytest.mark.parametrize(
    ("name", "topic_filter", "may"),
    [
        ("pi", "round", True),
        ("pi", f"blobs/{'0' * 64}/+", True),
        ("pi", "agents/pi/inbox", True),
        ("pi", "agents/po/inbox", False),
        ("pi", "agents/+/inbox", False),
        ("pi", "#", False),
        ("pi", "blobs/#", False),
        ("pi", "blobs/+/#", False),
        ("coordinator", "agents/+/status", True),
        ("coordinator", "agents/#", False),
        ("coordinator", "results", False),
        ("observer", "results", True),
        ("observer", "agents/+/status", True),
        ("observer", "coordinator/status", True),
        ("observer", "round", False),
        ("observer", "agents/+/updates/+/+", False),
    ],
)
def test_a_filter_is_readable_when_all_topics_it_matches_are(
    name: str, topic_filter: str, may: bool
) -> None:
    assert may_read("houses", member(name), ROOT + topic_filter) == may
    assert not may_read("houses", member(name), f"fedge/v1/flats/{topic_filter}")


def test_a_device_may_write_only_below_its_own_name() -> None:
    assert may_write("houses", member("pi"), f"{ROOT}agents/pi/updates/1/0")
    assert not may_write("houses", member("pi"), f"{ROOT}agents/po/updates/1/0")
    assert not may_write("houses", member("pi"), f"{ROOT}round")
    assert may_write("houses", member("coordinator"), f"{ROOT}round")


@pytest.mark.parametrize("tail", ["agents/observer/status", "results", "round", "agents/x/inbox"])
def test_an_observer_writes_nothing(tail: str) -> None:
    assert not may_write("houses", member("observer"), ROOT + tail)


def test_the_command_reads_a_log(tmp_path: Path) -> None:
    settings = FleetSettings("houses", ["localhost"], user=Account.current().name)
    fleet = create_fleet(tmp_path / "fleet", settings, utc_now())
    with fleet.changing():
        fleet.save(utc_now(), devices=register_of("mallory", "alice").devices)
    command = ["broker", "refusals", str(tmp_path / "fleet")]
    result = CliRunner().invoke(cli, command, input=LOG)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == read(LOG)
    (tmp_path / "log").write_text(LOG)
    assert CliRunner().invoke(cli, [*command, str(tmp_path / "log")]).stdout == result.stdout
    # Control characters in a topic are escaped: they must not move the terminal's cursor.
    result = CliRunner().invoke(cli, command, input=LOG.replace("round'", "\x1b[2Jround'"))
    assert "\\x1b[2Jround" in result.stdout
    assert "\x1b" not in result.stdout
