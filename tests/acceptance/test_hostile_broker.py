"""Whoever runs the broker, or stands before it, can withhold but not forge: real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.local.broker import LocalBroker
from broker.protocol import signed_messages
from broker.protocol.topics import ChunkTopic
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.signing import SigningKeys
from fedge.command import cli
from fedge.files import Account
from models.zoo import load_zoo
from tests.acceptance.federation import Federation, eventually, running
from tests.acceptance.gateway import FALSE_ROUND, TOPICS, Forger, between
from tests.conftest import need

pytestmark = pytest.mark.mosquitto

ROUNDS = 3
NAMES = ("pi-0", "pi-1")
STATUS, PROGRAM, ROUND = (TOPICS.root + tail for tail in ("coordinator/status", "program", "round"))


@pytest.fixture
def north() -> Iterator[LocalBroker]:
    """The coordinator's broker."""
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


@pytest.fixture
def south() -> Iterator[LocalBroker]:
    """What the agents take for it."""
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


def federation_of(folder: Path, north: LocalBroker, south: LocalBroker) -> Federation:
    """Its coordinator signs, its agents were enrolled with the key."""
    keys = SigningKeys.generate()
    (folder / "signing.key").write_bytes(keys.encode())
    (folder / "coordinator.pub").write_bytes(signed_messages.encode_public_keys(keys.public))
    federation = Federation(
        folder,
        south.port,
        NAMES,
        coordinator={"rounds": ROUNDS, "signing_key": str(folder / "signing.key")},
        agent={"trusted_keys": str(folder / "coordinator.pub"), "heartbeat_s": 1, "stall_s": 0.5},
    ).write()
    federation.configure("coordinator", broker=federation.at(north.port))
    return federation


def test_a_signing_key_is_rotated_while_a_fleet_learns_and_no_device_is_touched(
    tmp_path: Path, north: LocalBroker
) -> None:
    fleet = create_fleet(
        tmp_path / "fleet",
        FleetSettings("f", ["localhost"], user=Account.current().name),
        utc_now(),
    )
    federation = federation_of(tmp_path, north, north)
    pinned = map(bytes.fromhex, fleet.register.signing_keys)
    (tmp_path / "coordinator.pub").write_bytes(signed_messages.encode_public_keys(pinned))
    key_file = fleet.folder / "coordinator" / "signing.key"
    federation.configure("coordinator", signing_key=str(key_file), rounds=4)
    with running(federation):
        federation.start_all()
        for version, option in ((1, []), (2, ["--finish", "--checked"])):
            federation.await_version(version)
            federation.kill("coordinator")
            command = ["broker", "rotate-key", str(fleet.folder), *option]
            assert CliRunner().invoke(cli, command).exit_code == 0
            if option:
                federation.kill("pi-0")  # what it learned of keys is on its disk
                federation.start("pi-0")
            federation.start("coordinator")
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(4)
    (newest,) = (
        signed_messages.key_id(bytes.fromhex(key))
        for key in Fleet(fleet.folder).register.signing_keys
    )
    for name in NAMES:
        said = federation.said(name)
        assert f"the coordinator signs with {newest} and " in said
        assert f"the coordinator signs with {newest} from now on" in said


def forger() -> Forger:
    return Forger(load_zoo("house_price").spec.size)


def test_what_a_man_in_the_middle_forges_changes_or_repeats_is_refused_and_the_round_goes_on(
    tmp_path: Path, north: LocalBroker, south: LocalBroker
) -> None:
    federation, forge = federation_of(tmp_path, north, south), forger()
    with running(federation), between(north.port, south.port, forge) as gateway:
        for index, chunk in enumerate(forge.chunks):
            gateway.say(TOPICS.name(ChunkTopic(forge.weights.sha256, index)), chunk)
        federation.start(*NAMES)
        # They hear it all, and not only what is retained last.
        eventually(
            "connections", lambda: all("connected" in federation.said(name) for name in NAMES)
        )
        federation.start("coordinator")
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(ROUNDS)
    for name in NAMES:
        said = federation.said(name)
        for topic in (STATUS, PROGRAM, ROUND):
            start = f"message on {topic} refused, "
            assert f"{start}not signed: this device trusts signed messages only" in said
            assert f"{start}signed by a key that this device does not trust: " in said
            assert f"{start}signature wrong: forged, altered, or said in another place" in said
        assert f"message on {ROUND} refused, older than one seen before: number" in said
        assert f"round {FALSE_ROUND}" not in said


def test_the_same_man_in_the_middle_succeeds_where_no_key_is_pinned(
    tmp_path: Path, north: LocalBroker, south: LocalBroker
) -> None:
    federation, forge = federation_of(tmp_path, north, south), forger()
    federation.configure("pi-0", trusted_keys=None)
    with running(federation), between(north.port, south.port, forge) as gateway:
        for index, chunk in enumerate(forge.chunks):
            gateway.say(TOPICS.name(ChunkTopic(forge.weights.sha256, index)), chunk)
        federation.start_all()
        eventually(
            "training on forged weights",
            lambda: f"round {FALSE_ROUND}: training on" in federation.said("pi-0"),
        )
        assert f"round {FALSE_ROUND}" not in federation.said("pi-1")


def test_a_device_that_was_off_is_not_turned_back_and_a_coordinator_killed_goes_on(
    tmp_path: Path, north: LocalBroker, south: LocalBroker
) -> None:
    federation = federation_of(tmp_path, north, south)
    with running(federation), between(north.port, south.port, lambda *_: ()) as gateway:
        federation.start_all()
        federation.await_version(2)
        gateway.withholds = True
        federation.kill("pi-0")
        federation.kill("coordinator")
        for topic in (STATUS, PROGRAM, ROUND):
            gateway.say(topic, gateway.heard[topic][0])
        federation.start("pi-0")
        eventually(
            "the refusal of an old plan",
            lambda: f"message on {ROUND} refused, older than one seen" in federation.said("pi-0"),
            context=lambda: federation.said("pi-0"),
        )
        gateway.withholds = False
        federation.start("coordinator")
        assert federation.ended("coordinator") == 0
        federation.check_nothing_lost(ROUNDS)
