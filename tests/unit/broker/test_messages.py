"""Protocol v1 on the wire: golden bytes, limits, and what decoders do with anything else.

The golden bytes are kept for ever: devices in the field are older than you think. A change that
breaks one of these tests breaks them.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import messages
from broker.protocol.messages import (
    MAX_MESSAGE_BYTES,
    AgentStatus,
    BlobRef,
    Cohort,
    CoordinatorStatus,
    Message,
    ProgramManifest,
    Receipt,
    Report,
    Resend,
    RoundPlan,
    TargetSummary,
    UpdateHeader,
    VectorRef,
)
from broker.protocol.seeds import codec_seed
from fedge.errors import WireError

SHA_A, SHA_B = "a" * 64, "b" * 64

COORDINATOR_STATUS = (
    CoordinatorStatus(state="online", session="c0ffee", version=12),
    b'{"state":"online","session":"c0ffee","version":12}',
)
AGENT_STATUS = (
    AgentStatus(
        state="online",
        agent_instance="b007",
        phases=("train", "evaluate"),
        train_examples=800,
        test_examples=200,
        runtime="tflite-runtime 2.14.0",
        memory_bytes=1_000_000_000,
        codecs=("float32", "int8"),
        algorithms=("fedavg", "scaffold"),
        tags=("kitchen",),
        software="0.1.0",
        heartbeat_s=60.0,
        targets={"target": TargetSummary(classes=(0, 2)), "target_age": TargetSummary(level=16.0)},
        warnings=("target: odd",),
    ),
    b'{"state":"online","agent_instance":"b007","phases":["train","evaluate"],"train_examples":800,'
    b'"test_examples":200,"runtime":"tflite-runtime 2.14.0","memory_bytes":1000000000,'
    b'"codecs":["float32","int8"],"algorithms":["fedavg","scaffold"],"tags":["kitchen"],'
    b'"software":"0.1.0","heartbeat_s":60.0,"targets":{"target":{"classes":[0,2]},'
    b'"target_age":{"level":16.0}},"warnings":["target: odd"]}',
)
MANIFEST = (
    ProgramManifest(
        name="house_price",
        package=BlobRef(sha256=SHA_A, size=9000, chunks=1),
        fingerprint="0123456789abcdef",
    ),
    b'{"name":"house_price","package":{"sha256":"' + SHA_A.encode() + b'","size":9000,"chunks":1},'
    b'"fingerprint":"0123456789abcdef"}',
)
PLAN = (
    RoundPlan(
        session="c0ffee",
        coordinator_instance="5ca1e",
        round_id=3,
        state="open",
        version=2,
        blobs={
            "weights": BlobRef(sha256=SHA_B, size=12, chunks=1),
            "control": BlobRef(sha256=SHA_A, size=12, chunks=1),
        },
        package=SHA_A,
        fingerprint="0123456789abcdef",
        cohort=Cohort(ids=("pi-1", "pi-2")),
        algorithm={"name": "scaffold", "learning_rate": 0.5},
        training={"epochs": 2, "learning_rate": 0.05},
        codec={"name": "int8", "block_size": 256},
        deadline_s=60.0,
        fetch_jitter_s=5.0,
        seed=99,
        max_staleness=2,
    ),
    b'{"session":"c0ffee","coordinator_instance":"5ca1e","round_id":3,"state":"open","version":2,'
    b'"blobs":{"weights":{"sha256":"' + SHA_B.encode() + b'","size":12,"chunks":1},'
    b'"control":{"sha256":"' + SHA_A.encode() + b'","size":12,"chunks":1}},'
    b'"package":"' + SHA_A.encode() + b'","fingerprint":"0123456789abcdef",'
    b'"cohort":{"ids":["pi-1","pi-2"]},'
    b'"algorithm":{"name":"scaffold","learning_rate":0.5},'
    b'"training":{"epochs":2,"learning_rate":0.05},"codec":{"name":"int8","block_size":256},'
    b'"deadline_s":60.0,"fetch_jitter_s":5.0,"seed":99,"max_staleness":2}',
)
EVALUATION_PLAN = (
    RoundPlan(
        session="c0ffee",
        coordinator_instance="5ca1e",
        round_id=3,
        state="open",
        version=2,
        blobs={"weights": BlobRef(sha256=SHA_B, size=12, chunks=1)},
        package=SHA_A,
        fingerprint="0123456789abcdef",
        cohort=Cohort(seed=7, fraction=0.25),
        phase="evaluate",
    ),
    b'{"session":"c0ffee","coordinator_instance":"5ca1e","round_id":3,"state":"open","version":2,'
    b'"blobs":{"weights":{"sha256":"' + SHA_B.encode() + b'","size":12,"chunks":1}},'
    b'"package":"' + SHA_A.encode() + b'","fingerprint":"0123456789abcdef",'
    b'"cohort":{"seed":7,"fraction":0.25},"phase":"evaluate"}',
)
REPORT = (
    Report(
        session="c0ffee",
        agent_instance="b007",
        round_id=3,
        kind="result",
        phase="evaluate",
        version=3,
        loss_sum=12.5,
        weight_sum=5.0,
        metric_sums={"mae": 6.25},
        received_bytes=4711,
    ),
    b'{"session":"c0ffee","agent_instance":"b007","round_id":3,"kind":"result","phase":"evaluate",'
    b'"version":3,"loss_sum":12.5,"weight_sum":5.0,"metric_sums":{"mae":6.25},'
    b'"received_bytes":4711}',
)
DECLINED = (
    Report(
        session="c0ffee",
        agent_instance="b007",
        round_id=3,
        kind="declined",
        phase="train",
        version=2,
        reason="no_data",
        detail="no rows",
    ),
    b'{"session":"c0ffee","agent_instance":"b007","round_id":3,"kind":"declined","phase":"train",'
    b'"version":2,"reason":"no_data","detail":"no rows"}',
)
RECEIPT = (
    Receipt(
        session="c0ffee",
        round_id=3,
        agent_instance="b007",
        attempt=1,
        accepted=False,
        reason="norm",
        detail="L2 norm 5, limit 1",
    ),
    b'{"kind":"receipt","session":"c0ffee","round_id":3,"agent_instance":"b007","attempt":1,'
    b'"accepted":false,"reason":"norm","detail":"L2 norm 5, limit 1"}',
)
MISSING = (
    Report(
        session="c0ffee",
        agent_instance="b007",
        round_id=3,
        kind="missing",
        phase="train",
        version=2,
        sha256=SHA_A,
        chunks=(0, 7),
    ),
    b'{"session":"c0ffee","agent_instance":"b007","round_id":3,"kind":"missing","phase":"train",'
    b'"version":2,"sha256":"' + SHA_A.encode() + b'","chunks":[0,7]}',
)
STATISTICS = (
    Report(
        session="c0ffee",
        agent_instance="b007",
        round_id=3,
        kind="result",
        phase="statistics",
        version=2,
        values={"age": (3.0, 1.5)},
        num_examples=3,
    ),
    b'{"session":"c0ffee","agent_instance":"b007","round_id":3,"kind":"result","phase":"statistics",'
    b'"version":2,"values":{"age":[3.0,1.5]},"num_examples":3}',
)
RESEND = (
    Resend(session="c0ffee", round_id=3, sha256=SHA_A, chunks=(2,)),
    b'{"kind":"resend","session":"c0ffee","round_id":3,"sha256":"' + SHA_A.encode() + b'",'
    b'"chunks":[2]}',
)
HEADER = UpdateHeader(
    session="c0ffee",
    agent_instance="b007",
    round_id=3,
    attempt=1,
    version=2,
    fingerprint="0123456789abcdef",
    vectors={
        "delta": VectorRef(codec="float32", size=3, bytes=12),
        "control": VectorRef(codec={"name": "int8", "block_size": 2}, size=3, bytes=11),
    },
    num_examples=800,
    loss_sum=400.0,
    weight_sum=800.0,
    metric_sums={"mae": 200.0, "f1": (3.0, 1.0, 0.5)},
    training_s=1.5,
    received_bytes=4711,
)
HEADER_JSON = (
    b'{"session":"c0ffee","agent_instance":"b007","round_id":3,"attempt":1,"version":2,'
    b'"fingerprint":"0123456789abcdef","vectors":{"delta":{"codec":"float32","size":3,"bytes":12},'
    b'"control":{"codec":{"name":"int8","block_size":2},"size":3,"bytes":11}},'
    b'"num_examples":800,"loss_sum":400.0,"weight_sum":800.0,'
    b'"metric_sums":{"mae":200.0,"f1":[3.0,1.0,0.5]},"training_s":1.5,"received_bytes":4711}'
)
# 1, 2, 3 as little-endian float32; then the scales 1 and 0.5, the levels 127, -3 and 1.
BODY = bytes.fromhex("0000803f0000004000004040 0000803f0000003f 7ffd01")
FRAME = b"FDG1" + bytes.fromhex("00000182") + HEADER_JSON + BODY

GOLDEN = [
    COORDINATOR_STATUS,
    AGENT_STATUS,
    MANIFEST,
    PLAN,
    EVALUATION_PLAN,
    REPORT,
    DECLINED,
    MISSING,
    STATISTICS,
    RECEIPT,
    RESEND,
]
KINDS: list[type[Message]] = [
    CoordinatorStatus,
    AgentStatus,
    ProgramManifest,
    RoundPlan,
    TargetSummary,
    Report,
    Receipt,
    Resend,
    Cohort,
    BlobRef,
    UpdateHeader,
    VectorRef,
]
every_golden = pytest.mark.parametrize(
    ("message", "wire"), GOLDEN, ids=[type(message).__name__ for message, _ in GOLDEN]
)


@every_golden
def test_a_message_is_written_as_it_always_was(message: Message, wire: bytes) -> None:
    assert messages.encode(message) == wire


@every_golden
def test_a_message_is_read_as_it_always_was(message: Message, wire: bytes) -> None:
    assert messages.decode(wire, type(message)) == message


@every_golden
def test_fields_of_a_newer_version_are_ignored(message: Message, wire: bytes) -> None:
    newer = b'{"from_the_future":[1,{"a":null}],' + wire[1:]
    assert messages.decode(newer, type(message)) == message


def test_an_update_frame_is_written_and_read_as_it_always_was() -> None:
    assert len(HEADER_JSON) == 0x182
    assert messages.encode_update(HEADER, BODY) == FRAME
    header, body = messages.decode_update(FRAME)
    assert header == HEADER
    assert bytes(body) == BODY


@pytest.mark.parametrize(
    ("kind", "wire", "expected"),
    [
        (
            CoordinatorStatus,
            b'{"state":"offline","session":"a"}',
            CoordinatorStatus(state="offline", session="a", version=0),
        ),
        (
            AgentStatus,
            b'{"state":"offline","agent_instance":"a"}',
            AgentStatus(state="offline", agent_instance="a", phases=(), train_examples=0),
        ),
        (Cohort, b"{}", Cohort(ids=None, seed=0, fraction=1.0)),
    ],
)
def test_what_an_older_version_leaves_out_has_its_default(
    kind: type[Message], wire: bytes, expected: Message
) -> None:
    assert messages.decode(wire, kind) == expected


def changed(golden: tuple[Message, bytes], path: str, value: Any) -> tuple[type[Message], bytes]:
    """The wire form of a golden message with one field replaced (or removed, by `...`)."""
    message, wire = golden
    document = msgspec.json.decode(wire)
    place, parts = document, path.split(".")
    for part in parts[:-1]:
        place = place[part]
    if value is ...:
        del place[parts[-1]]
    else:
        place[parts[-1]] = value
    return type(message), msgspec.json.encode(document)


@pytest.mark.parametrize(
    ("golden", "path", "value"),
    [
        (COORDINATOR_STATUS, "state", "fast asleep"),
        (COORDINATOR_STATUS, "session", ""),
        (COORDINATOR_STATUS, "session", "a/b"),
        (COORDINATOR_STATUS, "session", "a\n"),
        (COORDINATOR_STATUS, "session", "x" * 65),
        (COORDINATOR_STATUS, "session", "ä"),
        (COORDINATOR_STATUS, "session", ...),
        (COORDINATOR_STATUS, "version", -1),
        (COORDINATOR_STATUS, "version", (1 << 53) + 1),
        (COORDINATOR_STATUS, "version", "1"),
        (COORDINATOR_STATUS, "version", True),
        (AGENT_STATUS, "agent_instance", "#"),
        (AGENT_STATUS, "phases", ["steal it"]),
        (AGENT_STATUS, "train_examples", -1),
        (AGENT_STATUS, "runtime", 7),
        (AGENT_STATUS, "runtime", "x" * 501),
        (AGENT_STATUS, "codecs", ["c"] * 1001),
        (AGENT_STATUS, "tags", ["c"] * 65),
        (AGENT_STATUS, "tags", ["c\n"]),
        (MANIFEST, "package.sha256", "A" * 64),
        (MANIFEST, "package.sha256", "a" * 64 + "\n"),
        (MANIFEST, "package.size", 0),
        (MANIFEST, "package.size", (1 << 40) + 1),
        (MANIFEST, "package.chunks", 0),
        (MANIFEST, "package.chunks", 100_000_001),
        (MANIFEST, "fingerprint", "0123"),
        (PLAN, "round_id", -1),
        (PLAN, "round_id", 1_000_000_000),
        (PLAN, "state", "a jar"),
        (PLAN, "algorithm", 7),
        (PLAN, "max_staleness", -1),
        (PLAN, "cohort.ids", ["+"]),
        (PLAN, "cohort.fraction", 1.1),
        (PLAN, "cohort.fraction", -0.1),
        (PLAN, "training", []),
        (PLAN, "deadline_s", 0.0),
        (PLAN, "blobs.weights", ...),
        (PLAN, "blobs", {str(n): PLAN[0].weights for n in range(65)}),
        (REPORT, "kind", "some gossip"),
        (REPORT, "loss_sum", None),
        (REPORT, "loss_sum", 1e101),
        (REPORT, "loss_sum", "1"),
        (REPORT, "weight_sum", -1.0),
        (REPORT, "metric_sums", {"mae": -1e101}),
        (REPORT, "metric_sums", {str(n): 0.0 for n in range(65)}),
        (DECLINED, "detail", "x" * 501),
        (RECEIPT, "accepted", 1),
        (RECEIPT, "attempt", -1),
    ],
)
def test_what_is_out_of_range_is_refused_with_its_name(
    golden: tuple[Message, bytes], path: str, value: Any
) -> None:
    kind, wire = changed(golden, path, value)
    with pytest.raises(WireError, match=f"{kind.__name__}: .*{path.split('.')[-1][:12]}"):
        messages.decode(wire, kind)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null"])
def test_no_figure_is_ever_read_as_nan_or_infinite(value: bytes) -> None:
    with pytest.raises(WireError):
        messages.decode(REPORT[1].replace(b"12.5", value), Report)
    with pytest.raises(WireError):
        messages.decode_update(frame(HEADER_JSON.replace(b"200.0", value)))


def test_a_message_beyond_the_cap_is_not_even_parsed() -> None:
    wire = RECEIPT[1]
    padded = wire + b" " * (MAX_MESSAGE_BYTES - len(wire))
    assert messages.decode(padded, Receipt) == RECEIPT[0]
    with pytest.raises(WireError, match=f"Receipt: {MAX_MESSAGE_BYTES + 1} bytes, limit"):
        messages.decode(padded + b" ", Receipt)


def test_a_plan_for_ten_thousand_agents_with_the_longest_names_fits() -> None:
    ids = tuple(f"{number:064d}" for number in range(10_000))
    plan = msgspec.structs.replace(PLAN[0], cohort=Cohort(ids=ids))
    assert messages.decode(messages.encode(plan), RoundPlan) == plan


def frame(header: bytes, body: bytes = BODY, *, length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return b"FDG1" + size.to_bytes(4, "big") + header + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"FDG1",
        FRAME[:7],
        b"FDG2" + FRAME[4:],
        FRAME[: 8 + 0xF9],
        frame(b""),
        frame(b"{}"),
        frame(b"[" * 100_000),
        frame(HEADER_JSON, length=len(HEADER_JSON) - 1),
        frame(HEADER_JSON, length=0xFFFFFFFF),
        frame(HEADER_JSON.replace(b"c0ffee", b"\xff\xfe")),
        frame(HEADER_JSON.replace(b"800", b"-1")),
        frame(HEADER_JSON.replace(b"vectors", b"victors")),
        frame(HEADER_JSON + b" " * (1 << 20)),
    ],
)
def test_what_is_no_update_frame_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="update: "):
        messages.decode_update(data)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.binary(max_size=300) | json_like.map(msgspec.json.encode))
@pytest.mark.parametrize("kind", KINDS)
def test_arbitrary_bytes_are_a_message_or_a_wire_error(kind: type[Message], payload: bytes) -> None:
    try:
        message = messages.decode(payload, kind)
    except WireError:
        return
    assert messages.decode(messages.encode(message), kind) == message


@given(st.data())
@pytest.mark.parametrize(("message", "wire"), GOLDEN, ids=lambda x: type(x).__name__)
def test_a_few_changed_bytes_are_a_message_or_a_wire_error(
    message: Message, wire: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(wire)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = messages.decode(bytes(damaged), type(message))
    except WireError:
        return
    assert type(found) is type(message)


@given(st.binary(max_size=400), st.integers(0, len(FRAME)))
def test_arbitrary_bytes_are_an_update_or_a_wire_error(noise: bytes, keep: int) -> None:
    for data in (noise, FRAME[:keep] + noise, frame(noise)):
        try:
            header, body = messages.decode_update(data)
        except WireError:
            continue
        assert isinstance(header, UpdateHeader)
        assert math.isfinite(header.loss_sum)
        assert len(body) <= len(data)


def test_a_cohort_by_rule_is_the_same_everywhere() -> None:
    """SHA-256 of "seed:id": kept for ever, since devices and coordinators must agree."""
    rule = Cohort(seed=42, fraction=0.5)
    # The first hex digit of each digest is below 8: printf 42:pi-2 | sha256sum
    assert [n for n in range(12) if rule.includes(f"pi-{n}")] == [2, 4, 6, 7, 8, 9, 10, 11]
    everyone, nobody = Cohort(seed=1, fraction=1.0), Cohort(seed=1, fraction=0.0)
    assert all(everyone.includes(str(n)) for n in range(1000))
    assert not any(nobody.includes(str(n)) for n in range(1000))
    share = sum(Cohort(seed=3, fraction=0.3).includes(str(n)) for n in range(10_000))
    assert 2800 <= share <= 3200  # standard deviation 46


def test_a_peer_of_another_version_may_say_what_this_one_has_no_name_for() -> None:
    """Open lists, states and kinds, and choices that are decoded late: none loses the message."""
    status = messages.decode(
        b'{"state":"dozing","agent_instance":"a","phases":["train","shuffle"],"codecs":["zip"]}',
        AgentStatus,
    )
    assert (status.state, status.phases) == ("dozing", ("train", "shuffle"))
    document = msgspec.json.decode(PLAN[1]) | {
        "phase": {"name": "shuffle", "rounds": 3},
        "algorithm": {"name": "fedmagic", "wand": True},
        "training": {"warm_up": 5},
        "codec": "zip",
        "state": "rehearsing",
    }
    plan = messages.decode(msgspec.json.encode(document), RoundPlan)
    assert plan.phase_name == "shuffle"
    assert (plan.algorithm, plan.training) == ({"name": "fedmagic", "wand": True}, {"warm_up": 5})
    assert messages.decode(messages.encode(plan), RoundPlan) == plan


@pytest.mark.parametrize(
    ("choice", "name"),
    [("train", "train"), ({"name": "train", "x": 1}, "train"), ({}, ""), ({"name": 7}, "")],
)
def test_the_name_of_a_choice(choice: Any, name: str) -> None:
    assert messages.name_of(choice) == name


def test_agents_and_coordinator_derive_the_same_seed_for_codecs() -> None:
    assert codec_seed(0, "pi-1") == 0x9AF75BF57624D32C
    assert codec_seed(99, "pi-1") == 0x9AF75BF57624D32C ^ 99
    assert codec_seed(99, "pi-1") != codec_seed(99, "pi-2")
