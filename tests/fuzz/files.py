"""Decoders of files: ours, that may rot, and those that people write."""

from __future__ import annotations

import io
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from broker.protocol import blobs
from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.storage.store import Store
from coordinator.storage.update_log import LOG_FILE, UpdateLog
from edge_agent.config import AgentConfig
from edge_agent.data.config import DataConfig, InputSource, TargetSource
from edge_agent.data.dataset import load_dataset
from edge_agent.data.file_settings import TimeConfig, WindowConfig
from edge_agent.data.normalise import STATE_FILE
from edge_agent.machine.device_state import DeviceState, rounded
from edge_agent.machine.pending_update import SpooledUpdate
from edge_agent.storage.chunk_cache import FOLDER, ChunkStore
from edge_agent.storage.update_spool import PENDING_FILE, Spool
from fedge.errors import ConfigError, DataError, ModelError
from fedge.yaml_config import load_config
from fleet.scenario import load_scenario
from learning.algorithms.algorithm import ServerState
from models.package.package import load_package
from models.package.spec import ModelSpec
from models.package.stored_versions import STORE_FILE
from models.runtime.central_rows import read_rows
from models.zoo import load_zoo
from tests.fuzz.decoder import MIB, Decoder, of_file

ROOT = Path(__file__).parents[2]


def file_decoders(folder: Path, frame: bytes) -> Iterator[Decoder]:
    """All of them; `frame` is of an update."""
    yield from _agent_files(folder, frame)
    yield from _store(folder)
    yield from _configurations(folder)
    yield from _data_files(folder)


# -- files of ours that may rot -----------------------------------------------------------------


def _agent_files(folder: Path, frame: bytes) -> Iterator[Decoder]:
    own = folder / "agent"
    spool = Spool(own, MIB)
    ones = np.ones(100, np.float32)
    state = DeviceState(
        "0" * 16, "5f3a", {"delta": rounded(ones)}, "scaffold", {"control": ones}, ones[:9]
    )
    spool.write(SpooledUpdate("5f3a", 7, "train", "b1", 1, 6, 60.0, frame, state))
    seed = (own / PENDING_FILE).read_bytes()
    yield Decoder("spool", of_file(own / PENDING_FILE, spool.load), (), (seed,), share=0.1)

    ref, payloads = blobs.split(bytes(range(256)) * 12, blobs.MIN_CHUNK_BYTES)
    chunks = ChunkStore(own, MIB)
    for payload in payloads:
        chunks.keep(ref.sha256, payload)
    file = own / FOLDER / ref.sha256
    seed = file.read_bytes()
    read = of_file(file, lambda: chunks.recall(ref.sha256))
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
        rounds._db.execute(
            "INSERT OR REPLACE INTO rounds VALUES (1, 'committed', 1, '', 0, ?)", (data,)
        )
        return rounds.rounds()

    yield Decoder("round's record", read_record, (ConfigError,), (_record(),), share=0.2)

    own = folder / "coordinator"
    store = Store(own)
    store.begin(np.ones(3, np.float32), ServerState({"velocity": np.ones(3, np.float32)}))
    theta = np.zeros(3, np.float32)
    store.commit(1, theta, ServerState(), msgspec.json.decode(_record(), type=RoundRecord))
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
    read = of_file(own / STORE_FILE, read_all)
    yield Decoder("store", read, (ConfigError,), (seed,), share=0.02)

    log = UpdateLog(own)
    log.clear(b"round 7")
    for name, frame in (("a", bytes(range(200))), ("b", b"")):
        log.add(name, 6, frame)
    log.sync()
    log.close()
    seed = (own / LOG_FILE).read_bytes()
    read = of_file(own / LOG_FILE, lambda: UpdateLog(own).read(b"round 7"))
    yield Decoder("update log", read, (), (seed,), share=0.1)


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
        read = of_file(path, lambda load=load, path=path: load(path))  # type: ignore[misc]
        # 100,000 values are allowed, and a node of YAML takes a kilobyte.
        yield Decoder(name, read, (ConfigError,), seeds, memory_bytes=256 * MIB, share=0.02)


def _npz(compressed: bool) -> bytes:
    file = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(file, x=np.arange(20, dtype=np.float32).reshape(10, 2), y=np.arange(10.0))
    return file.getvalue()


def _sqlite(folder: Path) -> bytes:
    path = folder / "rows.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE IF NOT EXISTS houses (income REAL, rooms, price INTEGER)")
        file.executemany("INSERT INTO houses VALUES (?, ?, ?)", [(1.5, "2", 3)] * 10)
        file.commit()
    return path.read_bytes()


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
    timed = DataConfig(
        path="timed.csv",
        inputs={"features": columns},
        target=TargetSource(column="price"),
        time=TimeConfig(column="at"),
        nan="drop",
        max_rows=1000,
    )
    text = 'at;income;rooms;price\n# made\n2026-01-01T00:00;1,5;2;3\n"1767225601";1,5;-;3\n' * 3
    raw["timed.csv"] = (text.encode(),)
    cut = msgspec.structs.replace(
        timed,
        path="cut.csv",
        inputs={},
        window=WindowConfig(length=2, every=0.5, gap_s=2, columns=("income",)),
    )
    lines = "".join(f"{n};{n},5;3\n" for n in range(9))
    raw["cut.csv"] = (f"at;income;price\n{lines}".encode(),)
    table = DataConfig(
        path="rows.sqlite",
        inputs={"features": columns},
        target=TargetSource(column="price"),
        max_rows=1000,
    )
    raw["rows.sqlite"] = (_sqlite(folder),)
    for config in (npz, csv, timed, cut, table):
        load = _loader(config, spec, folder)
        read = of_file(folder / config.path, load)
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

    def read_central(data: bytes) -> object:
        with zipfile.ZipFile(folder / "central.npz", "w") as archive:
            archive.writestr("y.npy", target.getvalue())
            archive.writestr("features.npy", data)
        return read_rows(folder / "central.npz", spec)

    yield Decoder("central.npz, array", read_central, (DataError,), seeds, share=0.05)
    read = of_file(folder / "central.npz", lambda: read_rows(folder / "central.npz", spec))
    read_central(seeds[0])
    whole = (folder / "central.npz").read_bytes()
    yield Decoder("central.npz", read, (DataError,), (whole,), share=0.05)

    measured = msgspec.structs.replace(npz, path="scaled.npz", normalise="device")
    (folder / "scaled.npz").write_bytes(_npz(False))
    load = _loader(measured, spec, folder)
    load()
    seed = (folder / STATE_FILE).read_bytes()
    read = of_file(folder / STATE_FILE, load)
    yield Decoder("normalisation", read, (DataError,), (seed,), share=0.05)

    model = folder / "model"
    load_zoo("house_price").save(model)
    seed = (model / "initial.npy").read_bytes()
    read = of_file(model / "initial.npy", lambda: load_package(model))
    yield Decoder("initial.npy", read, (ModelError,), (seed,), share=0.05)


def _loader(config: DataConfig, spec: ModelSpec, folder: Path) -> Callable[[], object]:
    return lambda: load_dataset(config, spec, folder, folder)
