"""Everything that reads bytes of others, with valid inputs to start from and what it may raise."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from broker import blobs, messages
from broker.config import load_config
from broker.messages import BlobRef
from broker.topics import Topics
from coordinator.config import CoordinatorConfig
from coordinator.records import RoundRecord
from coordinator.store import STORE_FILE, Store
from coordinator.strategies import state_from_bytes, state_to_bytes
from coordinator.uploads import Uploads
from edge_agent.chunks import FOLDER, ChunkStore
from edge_agent.config import AgentConfig
from edge_agent.data.config import DataConfig, InputSource, TargetSource
from edge_agent.data.dataset import load_dataset
from edge_agent.data.normalise import STATE_FILE
from edge_agent.spool import PENDING_FILE, Spool, SpooledUpdate
from fleet.processes import decode_event
from fleet.scenario import load_scenario
from models.codecs import CODECS, CodecConfig, make_codec
from models.errors import (
    CodecError,
    ConfigError,
    DataError,
    ModelError,
    UpdateRejected,
    WireError,
)
from models.package import load_package, unpack_wire
from models.spec import ModelSpec
from models.zoo import load_zoo

ROOT = Path(__file__).parents[2]
#: Of the vectors that codecs decode: not a whole number of blocks.
_SIZE = 100
_MIB = 1 << 20
_SESSION = "5f3a"


@dataclass(frozen=True, eq=False)
class Decoder:
    """Something that turns bytes into values, or refuses them.

    Attributes:
        name: for people.
        decode: takes the bytes.
        declared: all that it may raise.
        seeds: valid inputs.
        memory_bytes: it may hold at a time, whatever the input says.
        share: of the inputs, in proportion; small for what is slow.
    """

    name: str
    decode: Callable[[bytes], object]
    declared: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    memory_bytes: int = 8 * _MIB
    share: float = 1.0


def decoders(folder: Path) -> list[Decoder]:
    """All of them; those of files write into `folder`."""
    return [
        *_messages(),
        *_frames(),
        *_vectors(),
        *_topics(),
        *_agent_files(folder),
        *_store(folder),
        *_configurations(folder),
        *_data_files(folder),
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
            round_id=7,
            state="open",
            task="train",
            version=6,
            weights=weights,
            package="a" * 64,
            fingerprint="0" * 16,
            cohort=messages.Cohort(ids=("pi-0", "pi-1"), seed=3, fraction=0.5),
        ),
        messages.AgentStatus(
            state="online",
            boot="b1",
            tasks=("train",),
            train_examples=10,
            codecs=("int8",),
            tags=("roof",),
            heartbeat_s=60.0,
        ),
        messages.Report(
            session=_SESSION,
            boot="b1",
            round_id=7,
            kind="missing",
            task="evaluate",
            version=6,
            metric_sums={"mae": 1.5},
            sha256="b" * 64,
            chunks=(1, 2, 3),
        ),
    ]


def _header(codec: str, size: int = _SIZE) -> messages.UpdateHeader:
    return messages.UpdateHeader(
        session=_SESSION,
        boot="b1",
        round_id=7,
        attempt=1,
        version=6,
        fingerprint="0" * 16,
        codec=CodecConfig(codec),
        size=size,
        num_examples=10,
        loss=0.5,
        metrics={"mae": 0.25},
        training_s=1.5,
        received_bytes=1000,
    )


def _update(codec: str = "float32") -> bytes:
    vector = np.linspace(-1, 1, _SIZE, dtype=np.float32)
    body = make_codec(CodecConfig(codec)).encode(vector, np.random.default_rng(0))
    return messages.encode_update(_header(codec), body)


def _messages() -> Iterator[Decoder]:
    def decoder_of(kind: type[messages.Message]) -> Callable[[bytes], object]:
        return lambda data: messages.decode(data, kind)

    for example in _example_messages():
        name = f"message {type(example).__name__}"
        seeds = (messages.encode(example),)
        yield Decoder(name, decoder_of(type(example)), (WireError,), seeds)
    receipt = messages.Receipt(session=_SESSION, round_id=7, boot="b1", attempt=1, accepted=True)
    resend = messages.Resend(session=_SESSION, round_id=7, sha256="c" * 64, chunks=(0, 2))
    inbox = tuple(messages.encode(message) for message in (receipt, resend))
    yield Decoder("inbox", messages.decode_inbox, (WireError,), inbox)
    event = b'{"event": "round", "record": {"round_id": 1}, "able": 3}'
    yield Decoder("coordinator's event", decode_event, (WireError,), (event,))


def _frames() -> Iterator[Decoder]:
    package = load_zoo("house_price")
    state = {"velocity": np.arange(5, dtype=np.float32), "second": np.ones(5, np.float32)}
    yield Decoder("update", messages.decode_update, (WireError,), (_update(), _update("int8")))
    yield Decoder("package", unpack_wire, (WireError,), (package.wire,))
    yield Decoder("spec", ModelSpec.from_json, (ModelError,), (package.spec.to_json(),))
    yield Decoder("strategy state", state_from_bytes, (WireError,), (state_to_bytes(state),))
    _, chunks = blobs.split(bytes(range(256)) * 12, blobs.MIN_CHUNK_BYTES)
    yield Decoder("chunk", _receive, (WireError,), tuple(chunks))
    yield Decoder("chunk, checksum mended", _receive_mended, (WireError,), tuple(chunks))
    _, upload = blobs.split(_update())
    yield Decoder("upload", _upload, (UpdateRejected,), tuple(upload))


def _receive(data: bytes) -> bytes | None:
    chunk = blobs.parse_chunk(data)
    receiver = blobs.BlobReceiver(chunk.ref, _MIB)
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
    found = uploads.add("pi-0", data, 0.0)
    uploads.stalled(100.0)
    return found


def _vectors() -> Iterator[Decoder]:
    def decoder_of(config: CodecConfig) -> Callable[[bytes], object]:
        codec = make_codec(config)
        return lambda data: codec.decode(data, _SIZE)

    vector = np.linspace(-3, 3, _SIZE, dtype=np.float32)
    for name in CODECS:
        for block_size in (1024, 7):
            config = CodecConfig(name, block_size)
            seed = make_codec(config).encode(vector, np.random.default_rng(0))
            title = f"codec {name}/{block_size}"
            yield Decoder(title, decoder_of(config), (CodecError,), (seed,))


def _topics() -> Iterator[Decoder]:
    topics = Topics("f")
    tails = ["coordinator/status", "program", "round", f"blobs/{'a' * 64}/3", "agents/pi-0/inbox"]
    tails += ["agents/pi-0/status", "agents/pi-0/updates/7/0", "agents/pi-0/reports/7"]
    seeds = tuple(f"fedge/v1/f/{tail}".encode() for tail in tails)
    yield Decoder(
        "topic", lambda data: topics.parse(data.decode("utf-8", "replace")), (WireError,), seeds
    )


# -- files of ours that may rot -----------------------------------------------------------------


def _of_file(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    path.parent.mkdir(parents=True, exist_ok=True)

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return decode


def _agent_files(folder: Path) -> Iterator[Decoder]:
    own = folder / "agent"
    spool = Spool(own, _MIB)
    frame, residual = _update(), np.ones(_SIZE, np.float32)
    spool.write(SpooledUpdate(_SESSION, 7, "b1", 1, "0" * 16, 60.0, frame, residual))
    seed = (own / PENDING_FILE).read_bytes()
    yield Decoder("spool", _of_file(own / PENDING_FILE, spool.load), (), (seed,), share=0.1)

    ref, payloads = blobs.split(bytes(range(256)) * 12, blobs.MIN_CHUNK_BYTES)
    chunks = ChunkStore(own, _MIB)
    for payload in payloads:
        chunks.keep(ref.sha256, payload)
    file = own / FOLDER / ref.sha256
    seed = file.read_bytes()
    read = _of_file(file, lambda: chunks.recall(ref.sha256))
    yield Decoder("chunk cache", read, (), (seed,), share=0.1)


def _record() -> bytes:
    return msgspec.json.encode(
        RoundRecord(
            round_id=1,
            status="committed",
            version=1,
            asked=2,
            reported=2,
            refused=0,
            refusals={"late": 1},
            declined={},
            loss=0.5,
            metrics={"mae": 0.5},
            train_loss=0.5,
            train_metrics={},
            bytes_up=10,
            bytes_down=10,
            seconds=1.0,
            closed="goal",
            agents={},
        )
    )


def _store(folder: Path) -> Iterator[Decoder]:
    rounds = Store(None)

    def read_record(data: bytes) -> object:
        rounds._db.execute("INSERT OR REPLACE INTO rounds VALUES (1, ?, 0)", (data,))
        return rounds.rounds()

    yield Decoder("round's record", read_record, (ConfigError,), (_record(),), share=0.2)

    own = folder / "coordinator"
    store = Store(own)
    store.begin(np.ones(3, np.float32), {"velocity": np.ones(3, np.float32)})
    theta = np.zeros(3, np.float32)
    store.commit(1, theta, {}, msgspec.json.decode(_record(), type=RoundRecord))
    store.close()

    def read_all() -> object:
        for journal in own.glob(f"{STORE_FILE}-*"):
            journal.unlink()
        store = Store(own)
        try:
            return store.load(3), store.agents(), store.versions()
        finally:
            store.close()

    seed = (own / STORE_FILE).read_bytes()
    read = _of_file(own / STORE_FILE, read_all)
    yield Decoder("store", read, (ConfigError,), (seed,), share=0.02)


# -- files that people write --------------------------------------------------------------------


def _configurations(folder: Path) -> Iterator[Decoder]:
    kinds: dict[str, tuple[Callable[[Path], object], tuple[Path, ...]]] = {
        "agent.yaml": (lambda p: load_config(p, AgentConfig), (ROOT / "deploy/agent.yaml",)),
        "coordinator.yaml": (
            lambda p: load_config(p, CoordinatorConfig),
            (ROOT / "deploy/coordinator.yaml",),
        ),
        "scenario.yaml": (load_scenario, tuple(sorted((ROOT / "examples").glob("*.yaml")))),
    }
    for name, (load, examples) in kinds.items():
        path = folder / name
        seeds = tuple(example.read_bytes() for example in examples)
        read = _of_file(path, lambda load=load, path=path: load(path))  # type: ignore[misc]
        # 100,000 values are allowed, and a node of YAML takes a kilobyte.
        yield Decoder(name, read, (ConfigError,), seeds, memory_bytes=256 * _MIB, share=0.02)


def _npz(compressed: bool) -> bytes:
    file = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(file, x=np.arange(20, dtype=np.float32).reshape(10, 2), y=np.arange(10.0))
    return file.getvalue()


def _data_files(folder: Path) -> Iterator[Decoder]:
    spec = load_zoo("house_price").spec
    npz = DataConfig(path="rows.npz", inputs={"features": InputSource(array="x")}, max_rows=1000)
    columns = InputSource(columns=("income", "rooms"))
    csv = DataConfig(
        path="rows.csv",
        inputs={"features": columns},
        target=TargetSource(column="price"),
        group="place",
        max_rows=1000,
    )
    text = "income,rooms (m2),price,place\n" + "1.5,2.25,3e5,a\n-1,2,7,b\n" * 5
    raw = {"rows.npz": (_npz(False), _npz(True)), "rows.csv": (text.encode(),)}
    for config in (npz, csv):
        load = _loader(config, spec, folder)
        read = _of_file(folder / config.path, load)
        seeds = raw[str(config.path)]
        yield Decoder(str(config.path), read, (DataError,), seeds, share=0.05)

    # Behind the archive's checksums, which random damage seldom passes.
    array = io.BytesIO()
    np.save(array, np.arange(20, dtype=np.float32).reshape(10, 2))
    target = io.BytesIO()
    np.save(target, np.arange(10.0))
    load_rows = _loader(npz, spec, folder)

    def read_array(data: bytes) -> object:
        with zipfile.ZipFile(folder / npz.path, "w") as archive:
            archive.writestr("y.npy", target.getvalue())
            archive.writestr("x.npy", data)
        return load_rows()

    seeds = (array.getvalue(),)
    yield Decoder("rows.npz, array", read_array, (DataError,), seeds, share=0.05)

    measured = msgspec.structs.replace(npz, path="scaled.npz", normalise="device")
    (folder / "scaled.npz").write_bytes(_npz(False))
    load = _loader(measured, spec, folder)
    load()
    seed = (folder / STATE_FILE).read_bytes()
    read = _of_file(folder / STATE_FILE, load)
    yield Decoder("normalisation", read, (DataError,), (seed,), share=0.05)

    model = folder / "model"
    load_zoo("house_price").save(model)
    seed = (model / "initial.npy").read_bytes()
    read = _of_file(model / "initial.npy", lambda: load_package(model))
    yield Decoder("initial.npy", read, (ModelError,), (seed,), share=0.05)


def _loader(config: DataConfig, spec: ModelSpec, folder: Path) -> Callable[[], object]:
    return lambda: load_dataset(config, spec, folder, folder)
