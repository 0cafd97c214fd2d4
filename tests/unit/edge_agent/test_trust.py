"""An agent with a pinned key acts on what that key has signed, for its topic, in order; on nothing
else. Without a key it takes signed messages as well."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.protocol import blobs, messages, signed_messages
from broker.protocol.messages import AgentStatus, CoordinatorStatus, Message
from broker.protocol.topics import (
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    RoundTopic,
    Topic,
    Topics,
)
from broker.security.signing import SigningKeys
from broker.service.events import Connected, MessageArrived, Publish, Started
from edge_agent.machine.agent import Agent
from edge_agent.machine.events import Action, LoadPackage, ResolvePendingUpdate, SaveTrust, StartJob
from edge_agent.machine.pending_update import AgentMemory
from edge_agent.machine.status import AgentFacts
from edge_agent.machine.trust import Trust, TrustRecord
from edge_agent.storage.trust_file import TrustFile
from fedge.errors import StoreError, UntrustedError
from tests.unit.edge_agent.agent_stage import (
    MAX_PAYLOAD,
    PACKAGE,
    THETA,
    TOPICS,
    Device,
    only,
    plan,
    trained,
)

ROOT = Path(__file__).parents[3]
OURS, OTHER, NEWER = SigningKeys.generate(), SigningKeys.generate(), SigningKeys.generate()


def hexes(keys: SigningKeys) -> tuple[str, ...]:
    return tuple(key.hex() for key in keys.public)


def ids(keys: SigningKeys) -> tuple[str, ...]:
    return tuple(signed_messages.key_id(key) for key in keys.public)


class Pinned(Device):
    """A device with a key; what it hears is signed by `keys` with growing numbers."""

    def __init__(
        self, trusted: SigningKeys | None = OURS, record: TrustRecord | None = None
    ) -> None:
        super().__init__(connect=False)
        keys = () if trusted is None else trusted.public
        facts = AgentFacts(agent_id="pi-1", federation="f", agent_instance="b1", trusted_keys=keys)
        self.agent = Agent(facts, AgentMemory(trust=record))
        self.keys: SigningKeys | None = OURS
        self.number = 100
        self.feed(Started())
        self.feed(Connected(MAX_PAYLOAD))

    def hear(self, topic: Topic, message: Message | bytes) -> list[Action]:
        payload = message if isinstance(message, bytes) else messages.encode(message)
        if self.keys is not None and signed_messages.is_signed(topic):
            self.number += 1
            payload = signed(topic, payload, self.number, self.keys)
        return self.hear_raw(topic, payload)

    def hear_raw(self, topic: Topic, payload: bytes) -> list[Action]:
        return self.feed(MessageArrived(TOPICS.name(topic), payload))

    def record(self) -> TrustRecord:
        """What it put on disk last."""
        return only(self.actions, SaveTrust)[-1].record

    def rebooted(self, trusted: SigningKeys | None = OURS) -> Pinned:
        """The same device after a power cut."""
        again = Pinned(trusted, self.record())
        again.number, again.keys = self.number, self.keys
        return again


def signed(
    topic: Topic,
    message: bytes,
    number: int,
    keys: SigningKeys = OURS,
    topics: Topics = TOPICS,
) -> bytes:
    return signed_messages.join(message, keys.sign(topics.name(topic), number, message))


def ready(device: Pinned) -> Pinned:
    """It has the model and waits for a plan."""
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    device.loaded()
    return device


def trains(device: Pinned) -> bool:
    """Whether it trains once θ is here."""
    return bool(only(device.blob(THETA.tobytes()), StartJob))


def said(device: Pinned) -> AgentStatus:
    """Its last status."""
    sent = [a for a in only(device.actions, Publish) if a.topic.endswith("/status")]
    return messages.decode(sent[-1].payload, AgentStatus)


# --- what counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [OURS, None], ids=["pinned", "not pinned"])
def test_a_signed_federation_learns_and_settles(trusted: SigningKeys | None) -> None:
    device = ready(Pinned(trusted))
    device.plan()
    assert trains(device)
    device.feed(trained([0.5, 0.25, -1.0]))
    assert only(device.receipt(accepted=True), ResolvePendingUpdate) == [
        ResolvePendingUpdate(accepted=True)
    ]
    assert said(device).keys == (() if trusted is None else ids(OURS))


def test_the_disk_knows_before_anything_is_done() -> None:
    device = Pinned()
    device.coordinator()
    device.manifest()
    actions = device.plan()
    assert isinstance(actions[0], SaveTrust)
    assert actions[0].record.numbers == {"coordinator/status": 101, "program": 102, "round": 103}


def test_the_same_message_again_costs_no_write_and_does_no_harm() -> None:
    device = ready(Pinned())
    payload = signed(RoundTopic(), messages.encode(plan()), 500)
    assert only(device.hear_raw(RoundTopic(), payload), SaveTrust)
    assert not only(device.hear_raw(RoundTopic(), payload), SaveTrust)
    assert trains(device)


def test_retained_messages_of_different_topics_may_arrive_in_any_order() -> None:
    device = Pinned()
    package = messages.ProgramManifest(
        name="m", package=plan_ref(PACKAGE), fingerprint=plan().fingerprint
    )
    status = CoordinatorStatus(state="online", session="s1")
    parts: list[tuple[Topic, Message, int]] = [
        (RoundTopic(), plan(), 9),
        (ProgramTopic(), package, 8),
        (CoordinatorStatusTopic(), status, 7),
    ]
    for topic, message, number in parts:
        device.hear_raw(topic, signed(topic, messages.encode(message), number))
    device.blob(PACKAGE)
    device.loaded()
    assert trains(device)


def plan_ref(blob: bytes) -> messages.BlobRef:
    return blobs.split(blob)[0]


# --- what does not --------------------------------------------------------------------------------


def forged_plan(how: str) -> bytes:
    honest = messages.encode(plan(round_id=2))
    message, line = signed_messages.split(signed(RoundTopic(), honest, 900))
    if how == "not signed":
        return message
    if how == "another's key":
        return signed(RoundTopic(), honest, 900, OTHER)
    if how == "another's key under our name":
        theirs = OTHER.sign(TOPICS.name(RoundTopic()), 900, honest)
        return signed_messages.join(
            honest,
            signed_messages.SignatureEnvelope(
                number=900, signatures={ids(OURS)[0]: theirs.signatures[ids(OTHER)[0]]}
            ),
        )
    if how == "plan changed":
        changed = message.replace(b'"round_id":2', b'"round_id":3')
        return signed_messages.splice(changed, line)
    if how == "number changed":
        return signed_messages.splice(message, line.replace(b"900", b"901"))
    if how == "of another topic":
        return signed(ProgramTopic(), honest, 900)
    if how == "of another federation":
        return signed(RoundTopic(), honest, 900, topics=Topics("g"))
    if how == "envelope cut short":
        return signed_messages.splice(message, line[:-2])
    assert how == "old"
    return signed(RoundTopic(), honest, 99)


REASONS = {
    "not signed": "not signed",
    "another's key": "signed by a key that this device does not trust",
    "another's key under our name": "signature wrong",
    "plan changed": "signature wrong",
    "number changed": "signature wrong",
    "of another topic": "signature wrong",
    "of another federation": "signature wrong",
    "envelope cut short": "signature unreadable",
    "old": "older than one seen before",
}


@pytest.mark.parametrize("how", REASONS)
def test_a_false_plan_changes_nothing_and_is_told(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = ready(Pinned())
    device.plan()
    before = device.agent.plan
    assert device.hear_raw(RoundTopic(), forged_plan(how)) == []
    assert device.agent.plan == before
    (line,) = [r for r in caplog.records if r.__dict__.get("event") == "untrusted"]
    assert line.levelno == logging.WARNING
    start = f"message on fedge/v1/f/round refused, {REASONS[how]}: "
    assert line.getMessage().startswith(start)
    assert trains(device)  # and it goes on with the right one


def test_a_false_program_is_not_even_fetched() -> None:
    device = Pinned()
    device.coordinator()
    device.keys = OTHER
    assert device.manifest(b"malware") == []
    device.keys = OURS
    device.manifest()
    assert only(device.blob(PACKAGE), LoadPackage)


def test_weights_other_than_the_plan_s_are_not_trained() -> None:
    device = ready(Pinned())
    device.plan()
    topic = ChunkTopic(plan().weights.sha256, 0)
    (false,) = blobs.split((THETA + 1).tobytes())[1]
    assert not only(device.hear(topic, false), StartJob)
    assert trains(device)


def test_a_false_receipt_does_not_drop_the_update() -> None:
    device = ready(Pinned())
    device.plan()
    device.blob(THETA.tobytes())
    device.feed(trained([0.5, 0.25, -1.0]))
    device.keys = None
    assert device.receipt(accepted=True) == []
    device.keys = OURS
    assert only(device.receipt(accepted=True), ResolvePendingUpdate)


def test_an_inbox_message_counts_once() -> None:
    device = ready(Pinned())
    device.plan()
    device.blob(THETA.tobytes())
    actions = device.feed(trained([0.5, 0.25, -1.0]))
    (chunk,) = [a for a in only(actions, Publish) if "/updates/" in a.topic]
    resend = messages.Resend(
        session="s1",
        round_id=1,
        sha256=blobs.parse_chunk(chunk.payload).ref.sha256,
        chunks=(0,),
    )
    payload = signed(InboxTopic("pi-1"), messages.encode(resend), 700)
    assert device.hear_raw(InboxTopic("pi-1"), payload) == [chunk]
    assert device.hear_raw(InboxTopic("pi-1"), payload) == []


def test_a_will_signed_before_what_it_follows_is_taken_and_turns_nothing_back() -> None:
    device = Pinned()
    will = CoordinatorStatus(state="offline", session="s1", keys=hexes(OURS))
    farewell = signed(CoordinatorStatusTopic(), messages.encode(will), 50)
    ready(device).hear_raw(CoordinatorStatusTopic(), farewell)
    device.plan()
    assert not trains(device)
    birth = messages.encode(CoordinatorStatus(state="online", session="s1"))
    device.hear_raw(CoordinatorStatusTopic(), signed(CoordinatorStatusTopic(), birth, 60))
    assert device.agent.plan is not None  # the old birth is refused
    actions = device.coordinator()
    assert only([*actions, *device.blob(THETA.tobytes())], StartJob)


SAID: list[tuple[Topic, bytes]] = [
    (topic, signed(topic, message, number, keys))
    for number, keys in ((5, OURS), (6, OURS), (7, OTHER))
    for topic, message in (
        (CoordinatorStatusTopic(), b'{"state":"online","session":"s1"}'),
        (ProgramTopic(), b'{"name":"m"}'),
        (RoundTopic(), b'{"round_id":%d}' % number),
    )
]


@settings(max_examples=300, deadline=None)
@given(
    topic=st.sampled_from([CoordinatorStatusTopic(), ProgramTopic(), RoundTopic()]),
    lines=st.tuples(st.sampled_from(SAID), st.sampled_from(SAID)),
    flipped=st.none() | st.tuples(st.integers(0, 1 << 12), st.integers(0, 7)),
    cut=st.none() | st.integers(0, 400),
)
def test_no_patchwork_of_what_was_said_passes(
    topic: Topic,
    lines: tuple[tuple[Topic, bytes], tuple[Topic, bytes]],
    flipped: tuple[int, int] | None,
    cut: int | None,
) -> None:
    message, envelope = (signed_messages.split(line[1])[n] for n, line in enumerate(lines))
    patched = bytearray(signed_messages.splice(message, envelope))
    if flipped is not None:
        patched[flipped[0] % len(patched)] ^= 1 << flipped[1]
    payload = bytes(patched[:cut])
    trust = Trust(TOPICS, OURS.public)
    genuine = [said for where, said in SAID[:6] if where == topic]
    try:
        message = trust.opened(topic, payload)
    except UntrustedError:
        assert payload not in genuine
    else:
        # JSON may be written in more than one way: a changed envelope may say the same.
        assert message in [signed_messages.split(said)[0] for said in genuine]


# --- over restarts --------------------------------------------------------------------------------


def test_a_device_that_was_off_does_not_take_an_old_plan_for_a_new_one() -> None:
    device = ready(Pinned())
    old = signed(RoundTopic(), messages.encode(plan()), 101)
    device.plan(round_id=5)
    again = ready(device.rebooted())
    assert again.hear_raw(RoundTopic(), old) == []
    assert again.agent.plan is None
    again.plan(round_id=5)
    assert trains(again)


def test_a_coordinator_with_a_new_state_folder_goes_on() -> None:
    device = ready(Pinned())
    device.plan(round_id=5)
    device.coordinator(session="s2")
    device.plan(session="s2", coordinator_instance="c2", round_id=1)
    assert trains(device)


def test_the_file_is_read_back_and_a_damaged_one_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = TrustFile(tmp_path / "state")
    assert file.load() is None
    record = TrustRecord(pinned=hexes(OURS), keys=hexes(NEWER), numbers={"round": 7})
    file.write(record)
    assert file.load() == record
    (tmp_path / "state" / "trust.json").write_bytes(b"\xff\x00")
    assert file.load() is None
    assert "is damaged" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="not recognised"):
        TrustFile(tmp_path / "file").write(record)


# --- rotation of the key --------------------------------------------------------------------------


def overlapping(device: Pinned) -> Pinned:
    """The coordinator signs with two keys and announces both."""
    device.keys = OURS.with_newer(NEWER)
    announce(device)
    return device


def announce(device: Pinned) -> list[Action]:
    assert device.keys is not None
    status = CoordinatorStatus(state="online", session="s1", keys=hexes(device.keys))
    return device.hear(CoordinatorStatusTopic(), status)


def test_a_new_key_is_learned_from_the_old_one_and_outlives_restarts_and_the_old_one() -> None:
    device = overlapping(ready(Pinned()))
    assert said(device).keys == (*ids(NEWER), *ids(OURS))
    again = device.rebooted()
    again.keys = NEWER
    announce(ready(again))
    assert said(again).keys == ids(NEWER)
    again.keys = OURS
    assert again.plan() == []  # whoever has the old key has nothing
    once_more = again.rebooted()
    once_more.keys = NEWER
    ready(once_more).plan()
    assert trains(once_more)


def test_during_the_overlap_messages_may_come_before_the_announcement() -> None:
    device = Pinned()
    device.keys = OURS.with_newer(NEWER)
    device.manifest()
    device.plan()
    announce(device)
    device.blob(PACKAGE)
    device.loaded()
    assert trains(device)


def test_a_device_that_slept_through_the_overlap_says_so(caplog: pytest.LogCaptureFixture) -> None:
    device = Pinned()
    device.keys = NEWER
    announce(device)
    unable = said(device).unavailable_reason
    assert unable.startswith("coordinator not trusted: signed by a key that this device does not")
    assert re.search(f"{ids(NEWER)[0]}; it trusts {ids(OURS)[0]}: .* enrol", caplog.text)
    sent = len(only(device.actions, Publish))
    announce(device)
    assert len(only(device.actions, Publish)) == sent  # said once
    device.keys = OURS
    device.coordinator()
    assert said(device).unavailable_reason == ""


def test_a_device_enrolled_with_another_key_forgets_what_the_old_one_said() -> None:
    device = overlapping(ready(Pinned()))
    device.number = 1 << 50  # a thief used the highest numbers
    device.plan()
    again = device.rebooted(OTHER)
    again.number, again.keys = 100, OTHER
    ready(again).plan()
    assert trains(again)


def test_a_device_enrolled_again_during_the_overlap_keeps_the_numbers() -> None:
    device = overlapping(ready(Pinned()))
    device.plan()
    again = device.rebooted(OURS.with_newer(NEWER))
    again.number = 100
    again.coordinator()
    assert again.plan() == []


def test_keys_announced_by_nobody_we_trust_are_not_taken() -> None:
    device = ready(Pinned())
    status = messages.encode(CoordinatorStatus(state="online", session="s1", keys=hexes(OTHER)))
    device.hear_raw(CoordinatorStatusTopic(), status)
    device.hear_raw(
        CoordinatorStatusTopic(), signed(CoordinatorStatusTopic(), status, 900, keys=OTHER)
    )
    assert said(device).keys == ids(OURS)
    device.plan()
    assert trains(device)


# --- what it takes --------------------------------------------------------------------------------

_VERIFY = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from broker.protocol.topics import RoundTopic, Topics
from edge_agent.machine.trust import Trust
from broker.protocol.signed_messages import read_public_keys
folder = Path(sys.argv[1])
trust = Trust(Topics("f"), read_public_keys(folder / "coordinator.pub"))
print(trust.opened(RoundTopic(), (folder / "round").read_bytes()).decode())
"""


def without_cryptography(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_a_device_checks_signatures_without_the_package_cryptography(tmp_path: Path) -> None:
    (tmp_path / "coordinator.pub").write_bytes(signed_messages.encode_public_keys(OURS.public))
    (tmp_path / "round").write_bytes(signed(RoundTopic(), b'{"round_id":7}', 1))
    done = without_cryptography(_VERIFY, tmp_path)
    assert done.stdout == '{"round_id":7}\n', done.stderr


def test_a_coordinator_that_lacks_it_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(OURS.encode())
    config = tmp_path / "coordinator.yaml"
    config.write_text("federation: f\nmodel: house_price\nsigning_key: signing.key\n")
    code = "import sys; sys.modules['cryptography'] = None; from fedge.command import main; main()"
    done = without_cryptography(code, "coordinator", "run", "--config", config)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("install fedge with its extra, fedge[secure]")


# --- floods ---------------------------------------------------------------------------------------


def test_a_flood_of_forgeries_fills_neither_the_log_nor_the_coordinator_s_ear(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = ready(Pinned())
    before = len(device.actions)
    for _ in range(1000):
        device.hear_raw(CoordinatorStatusTopic(), b'{"state":"online","session":"s9"}')
    assert len(device.actions) == before
    lines = [r for r in caplog.records if r.__dict__.get("event") == "untrusted"]
    assert len(lines) == 10  # the 1st, 2nd, 4th … 512th
    assert lines[-1].getMessage().endswith("(512 such messages so far)")


def test_the_record_is_small(tmp_path: Path) -> None:
    facts: dict[str, Any] = dict.fromkeys(("coordinator/status", "program", "round"), 1 << 53)
    record = TrustRecord(pinned=hexes(OURS) * 4, keys=hexes(OURS) * 4, numbers=facts)
    assert len(msgspec.json.encode(record)) < 1000
