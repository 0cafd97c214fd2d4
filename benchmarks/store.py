"""The coordinator's store: bytes and time to keep an update, and a start with a long history.

    python benchmarks/store.py [--agents 64] [--rounds 5] [--repeats 5] [--json] [--save]

Each round announces, keeps one update of each agent (32 written together, synchronised), and ends.
In the same process, in turns: the log of the open round, the log with `erase`, and a table of
SQLite, which is what the store was before, as this build deletes from it. Bytes are those handed to
write calls (`wchar` in /proc/self/io) and pages made dirty for the disk (`write_bytes`), over the
bytes of the updates.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measure import Report, Spread, budget, finish, option_parser, shown, spread

from broker.protocol.messages import AgentStatus, BlobRef, Cohort, RoundPlan
from coordinator.records.course import Course
from coordinator.records.records import AgentResult, RoundRecord, new_record
from coordinator.storage.durability import FLUSH_UPDATES
from coordinator.storage.store import Store
from learning.algorithms.algorithm import ServerState

SIZES = {"P = 10,000, int8": 10_470, "P = 250,000, int8": 251_700}
WAYS = ("log", "log, erase", "SQLite")
HISTORY = (10, 100_000)
AGENTS = 10_000
BUDGET_WRITTEN = 1.2
#: A start reads as much with a long history as with a short one.
BUDGET_START = 3.0


class TableOfUpdates:
    """Updates in a table beside the others, with the calls of `UpdateLog`."""

    def __init__(self, db: sqlite3.Connection, default: int) -> None:
        self._db = db
        self._round = b""
        db.execute(f"PRAGMA secure_delete = {default}")
        db.execute(
            "CREATE TABLE updates (arrival INTEGER PRIMARY KEY, round_id BLOB, agent_id TEXT, "
            "version INTEGER, frame BLOB, UNIQUE (round_id, agent_id, version))"
        )

    def add(self, agent_id: str, version: int, frame: bytes) -> None:
        """Inserts an update."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "INSERT INTO updates (round_id, agent_id, version, frame) VALUES (?, ?, ?, ?)",
            (self._round, agent_id, version, frame),
        )

    def sync(self) -> None:
        """Commits."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def clear(self, token: bytes = b"") -> None:
        """Deletes."""
        self._round = token
        self._db.execute("DELETE FROM updates")

    def close(self) -> None:
        """Nothing to close."""


def opened(way: str, folder: Path) -> Store:
    """Returns a store that keeps updates in one of the ways."""
    store = Store(folder, erase=way == "log, erase")
    if way == "SQLite":
        with closing(sqlite3.connect(":memory:")) as fresh:
            default = fresh.execute("PRAGMA secure_delete").fetchone()[0]
        store._updates = TableOfUpdates(store._db, default)  # type: ignore[assignment]
    return store


def plan(round_id: int) -> RoundPlan:
    """Returns a plan of an ordinary size."""
    blob = BlobRef(sha256="0" * 64, size=40_000, chunks=1)
    return RoundPlan(
        session="s1",
        coordinator_instance="c1",
        round_id=round_id,
        state="open",
        version=0,
        blobs={"weights": blob},
        package="0" * 64,
        fingerprint="0" * 16,
        cohort=Cohort(),
    )


def written() -> tuple[int, int]:
    """Bytes of write calls and of dirtied pages, of this process so far."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["wchar"]), int(facts["write_bytes"])


def one_run(way: str, frame: bytes, agents: int, rounds: int) -> dict[str, float]:
    """Holds rounds; returns bytes by byte of update, and µs an update."""
    names = tuple(f"pi-{number}" for number in range(agents))
    with tempfile.TemporaryDirectory() as folder, closing(opened(way, Path(folder))) as store:
        store.begin(np.zeros(3, np.float32), ServerState())
        calls, pages = written()
        began_s = time.perf_counter()
        for round_id in range(1, rounds + 1):
            store.save_open_round(plan(round_id), names, agents)
            for number, name in enumerate(names, 1):
                store.add_update(name, 0, frame)
                if number % FLUSH_UPDATES == 0 or number == agents:
                    store.flush()
            store.save_round(new_record(round_id, 0, agents))
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        took_s = time.perf_counter() - began_s
        after_calls, after_pages = written()
    kept = len(frame) * agents * rounds
    return {
        "calls": (after_calls - calls) / kept,
        "pages": (after_pages - pages) / kept,
        "us": took_s / (agents * rounds) * 1e6,
    }


def updates(agents: int, rounds: int, repeats: int) -> dict[str, dict[str, dict[str, Spread]]]:
    """Measures each way of keeping updates of each size."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, dict[str, Spread]]] = {}
    for size, count in SIZES.items():
        frame = rng.bytes(count)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for repeat in range(repeats):
            for way in WAYS if repeat % 2 else WAYS[::-1]:
                runs[way].append(one_run(way, frame, agents, rounds))
        found[size] = {
            way: {key: spread(run[key] for run in each) for key in each[0]}
            for way, each in runs.items()
        }
    return found


def filled(folder: Path, rounds: int, agents: int) -> None:
    """Writes a store with a long history, as a coordinator would have left it."""
    parts = {
        f"pi-{n}": AgentResult(task="train", loss=0.5, metrics={"mae": 0.25}, num_examples=100)
        for n in range(10)
    }
    first = msgspec.structs.replace(
        new_record(1, 1, 10), status="committed", reported=10, loss=0.5, agents=parts
    )

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in range(1, rounds + 1):
            record: RoundRecord = msgspec.structs.replace(first, round_id=number, version=number)
            texts = (msgspec.json.encode(each).decode() for each in (record.summary, record))
            summary, text = texts
            yield number, "committed", number, summary, 0.0, text

    with closing(Store(folder)) as store:
        store.begin(np.zeros(10_000, np.float32), ServerState())
        record = msgspec.structs.replace(first, round_id=rounds, version=rounds)
        course = Course(last_round=rounds, committed=rounds)
        theta = np.zeros(10_000, np.float32)
        store.commit(rounds, theta, ServerState(), record, (), course)
        db = store._db
        db.execute("BEGIN")
        db.executemany("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?)", rows())
        db.execute("COMMIT")
        status = AgentStatus(state="online", agent_instance="1", train_examples=100)
        for number in range(agents):
            store.save_agent(f"pi-{number}", status)
        store.flush()


def starts(repeats: int) -> dict[str, Spread]:
    """Measures opening and loading a store, by rounds in it."""
    found: dict[str, Spread] = {}
    for rounds in HISTORY:
        with tempfile.TemporaryDirectory() as folder:
            filled(Path(folder), rounds, AGENTS if rounds == max(HISTORY) else 10)
            found[str(rounds)] = spread(_timed(_start, Path(folder)) for _ in range(repeats))
    return found


def _start(folder: Path) -> None:
    with closing(Store(folder)) as store:
        store.load(10_000)


def _timed(work: Callable[[Path], None], folder: Path) -> float:
    began_s = time.perf_counter()
    work(folder)
    return (time.perf_counter() - began_s) * 1e3


def show(report: Report) -> None:
    """Prints the report as tables."""
    print(f"{'an update':20s} {'kept in':12s} {'written by calls':>20s} {'pages':>20s} {'µs':>24s}")
    for size, ways in report["updates"].items():
        for way, found in ways.items():
            calls, pages = shown(found["calls"], 1, 2), shown(found["pages"], 1, 2)
            print(f"{size:20s} {way:12s} {calls:>20s} {pages:>20s} {shown(found['us']):>24s}")
    print("\nstart, ms: ")
    for rounds, found in report["starts"].items():
        print(f"  {int(rounds):>7,} rounds  {shown(found)}")


def main() -> None:
    """Measures, and reports."""
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    kept = updates(options.agents, options.rounds, options.repeats)
    began = starts(options.repeats)
    few, many = (began[str(rounds)]["median"] for rounds in HISTORY)
    written_bytes = max(ways["log"]["calls"]["median"] for ways in kept.values())
    report = {
        "agents": options.agents,
        "rounds": options.rounds,
        "updates": kept,
        "starts": began,
        "budgets": [
            budget(written_bytes, BUDGET_WRITTEN, "bytes written by byte of an update"),
            budget(many / few, BUDGET_START, "a start with 100,000 rounds over one with 10"),
        ],
    }
    finish("store", report, options, show)


if __name__ == "__main__":
    main()
