"""Everything that reads bytes of others, with valid inputs to start from and what it may raise."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from broker.protocol import blobs, messages, signed_messages
from broker.protocol.messages import BlobRef
from broker.protocol.topics import Topics
from coordinator.machine.uploads import Uploads
from fedge.errors import CodecError, ModelError, UpdateRejected, WireError
from fleet.runs.processes import decode_event
from learning.algorithms.algorithm import ServerState
from learning.algorithms.server_step import state_from_bytes, state_to_bytes
from learning.codecs.registry import CODECS
from learning.registry import Choice
from models.package.package import unpack_wire
from models.package.spec import ModelSpec
from models.zoo import load_zoo
from tests.fuzz.decoder import MIB, Decoder
from tests.fuzz.files import file_decoders

#: Of the vectors that codecs decode: not a whole number of blocks.
_SIZE = 100
_SESSION = "5f3a"


def decoders(folder: Path) -> list[Decoder]:
    """All of them; those of files write into `folder`."""
    return [
        *_messages(),
        *_frames(),
        *_vectors(),
        *_topics(),
        *file_decoders(folder, example_update()),
    ]


# -- the wire -----------------------------------------------------------------------------------


def _ref(blob: bytes) -> BlobRef:
    return blobs.describe(blob, blobs.MIN_CHUNK_BYTES)


def _example_messages() -> list[messages.Message]:
    weights = _ref(bytes(5000))
    return [
        weights,
        messages.CoordinatorStatus(state="online", session=_SESSION, version=3),
        messages.ProgramManifest(name="house_price", package=weights, fingerprint="0" * 16),
        messages.RoundPlan(
            session=_SESSION,
            coordinator_instance="c0ffee",
            round_id=7,
            state="open",
            version=6,
            blobs={"weights": weights, "control": weights},
            package="a" * 64,
            fingerprint="0" * 16,
            cohort=messages.Cohort(ids=("pi-0", "pi-1"), seed=3, fraction=0.5),
        ),
        messages.AgentStatus(
            state="online",
            agent_instance="b1",
            phases=("train",),
            train_examples=10,
            codecs=("int8",),
            tags=("roof",),
            heartbeat_s=60.0,
            targets={"target": messages.TargetSummary(classes=(0, 3), level=4.0, spread=1.0)},
            warnings=("target: odd",),
        ),
        messages.Report(
            session=_SESSION,
            agent_instance="b1",
            round_id=7,
            kind="missing",
            phase="evaluate",
            version=6,
            metric_sums={"mae": 1.5},
            sha256="b" * 64,
            chunks=(1, 2, 3),
        ),
    ]


def _header(codec: str, size: int = _SIZE) -> messages.UpdateHeader:
    return messages.UpdateHeader(
        session=_SESSION,
        agent_instance="b1",
        round_id=7,
        attempt=1,
        version=6,
        fingerprint="0" * 16,
        vectors={"delta": messages.VectorRef(codec=codec, size=size, bytes=4 * size)},
        num_examples=10,
        loss_sum=5.0,
        weight_sum=10.0,
        metric_sums={"mae": 2.5, "auc": (1.0, 2.0, 3.0, 4.0)},
        training_s=1.5,
        received_bytes=1000,
    )


def example_update(codec: str = "float32") -> bytes:
    vector = np.linspace(-1, 1, _SIZE, dtype=np.float32)
    body = CODECS.make(codec).encode(vector, 0, np.random.default_rng(0))
    return messages.encode_update(_header(codec), body)


def _messages() -> Iterator[Decoder]:
    def decoder_of(kind: type[messages.Message]) -> Callable[[bytes], object]:
        return lambda data: messages.decode(data, kind)

    for example in _example_messages():
        name = f"message {type(example).__name__}"
        seeds = (messages.encode(example),)
        yield Decoder(name, decoder_of(type(example)), (WireError,), seeds)
    mark = signed_messages.SignatureEnvelope(
        number=1 << 40, signatures={"0" * 16: "1" * 128, "a" * 16: "2" * 128}
    )
    line = signed_messages.split(signed_messages.join(b"{}", mark))[1]
    yield Decoder("signature envelope", signed_messages.parse, (WireError,), (line,))
    receipt = messages.Receipt(
        session=_SESSION, round_id=7, agent_instance="b1", attempt=1, accepted=True
    )
    resend = messages.Resend(session=_SESSION, round_id=7, sha256="c" * 64, chunks=(0, 2))
    inbox = tuple(messages.encode(message) for message in (receipt, resend))
    yield Decoder("inbox", messages.decode_inbox, (WireError,), inbox)
    event = b'{"event": "round", "record": {"round_id": 1}, "able": 3}'
    yield Decoder("coordinator's event", decode_event, (WireError,), (event,))


def _frames() -> Iterator[Decoder]:
    package = load_zoo("house_price")
    state = {"velocity": np.arange(5, dtype=np.float32), "second": np.ones(5, np.float32)}
    yield Decoder(
        "update", messages.decode_update, (WireError,), (example_update(), example_update("int8"))
    )
    yield Decoder("package", unpack_wire, (WireError,), (package.wire,))
    yield Decoder("spec", ModelSpec.from_json, (ModelError,), (package.spec.to_json(),))
    stored = state_to_bytes(ServerState(state, {"round": 3.0}))
    yield Decoder("server state", state_from_bytes, (WireError,), (stored,))
    _, chunks = blobs.split(bytes(range(256)) * 12, blobs.MIN_CHUNK_BYTES)
    yield Decoder("chunk", _receive, (WireError,), tuple(chunks))
    yield Decoder("chunk, checksum mended", _receive_mended, (WireError,), tuple(chunks))
    _, upload = blobs.split(example_update())
    yield Decoder("upload", _upload, (UpdateRejected,), tuple(upload))


def _receive(data: bytes) -> bytes | None:
    chunk = blobs.parse_chunk(data)
    receiver = blobs.BlobReceiver(chunk.ref, MIB)
    receiver.missing_indexes()
    receiver.add(chunk)
    return receiver.add(chunk)


def _receive_mended(data: bytes) -> bytes | None:
    """Behind the checksum, which random damage seldom passes."""
    crc_at = struct.calcsize(">4sIIQ")
    crc = struct.pack(">I", zlib.crc32(data[blobs.HEADER_BYTES :]))
    return _receive(data[:crc_at] + crc + data[crc_at + 4 :])


def _upload(data: bytes) -> object:
    uploads = Uploads()
    uploads.begin(4 * _SIZE)
    found = uploads.add("pi-0", 1, data, 0.0)
    uploads.stalled(100.0)
    return found


def _vectors() -> Iterator[Decoder]:
    def decoder_of(choice: Choice) -> Callable[[bytes], object]:
        codec = CODECS.make(choice)
        return lambda data: codec.decode(data, _SIZE, 3)

    vector = np.linspace(-3, 3, _SIZE, dtype=np.float32)
    choices: list[Choice] = [*CODECS, {"name": "int8", "block_size": 7}]
    for choice in choices:
        seed = CODECS.make(choice).encode(vector, 3, np.random.default_rng(0))
        yield Decoder(f"codec {choice}", decoder_of(choice), (CodecError,), (seed,))


def _topics() -> Iterator[Decoder]:
    topics = Topics("f")
    tails = ["coordinator/status", "program", "round", f"blobs/{'a' * 64}/3", "agents/pi-0/inbox"]
    tails += ["agents/pi-0/status", "agents/pi-0/updates/7/0", "agents/pi-0/reports/7"]
    seeds = tuple(f"fedge/v1/f/{tail}".encode() for tail in tails)
    yield Decoder(
        "topic", lambda data: topics.parse(data.decode("utf-8", "replace")), (WireError,), seeds
    )
