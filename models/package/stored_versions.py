"""Reads versions of θ from a coordinator's state folder.

The coordinator writes them (`coordinator.storage.store`); `fedge model release` reads one of them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedge.errors import ConfigError
from learning.vector.parameters import F32

STORE_FILE = "federation.sqlite"
VERSIONS_TABLE = """
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, theta BLOB NOT NULL, server_state BLOB NOT NULL,
    created_at REAL NOT NULL, digest BLOB NOT NULL
);
"""


@dataclass(frozen=True, eq=False)
class StoredVersion:
    """One version of θ and its origin.

    Attributes:
        federation: name of the federation.
        version: version of θ.
        theta: float32, shape (P,).
        created_at: seconds since 1970.
        agents: number of agents whose updates made it; 0 for version 0.
        evaluation: loss and metrics on the agents' held-out rows; empty if nothing was evaluated.
    """

    federation: str
    version: int
    theta: F32
    created_at: float
    agents: int
    evaluation: dict[str, float]


def checksum(*parts: object) -> bytes:
    """Returns the SHA-256 of the parts: SQLite itself does not detect flipped bits.

    Empty, which no digest is, if a part is not bytes: a flipped bit can change the type as well.
    """
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            return b""
        digest.update(part)
    return digest.digest()


def stored_model(folder: Path) -> tuple[str, str]:
    """Returns name and fingerprint of the model whose weights a state folder keeps.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / STORE_FILE
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return str(meta.get("model", "")), str(meta.get("fingerprint", ""))


def read_version(
    folder: Path, version: int | Literal["best"] | None, fingerprint: str
) -> StoredVersion:
    """Reads a version of θ; the coordinator may be running.

    Args:
        folder: the coordinator's `state_dir`.
        version: version of θ; None takes the latest, "best" the best one by `stop.metric`.
        fingerprint: fingerprint of the model.

    Raises:
        ConfigError: there is no such folder or version, nothing says which version is the best,
            the versions belong to another model, or the file is damaged.
    """
    path = folder / STORE_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; name the coordinator's state_dir")
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return _read(db, path, version, fingerprint)
        finally:
            db.close()
    except (sqlite3.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _read(
    db: sqlite3.Connection, path: Path, version: int | Literal["best"] | None, fingerprint: str
) -> StoredVersion:
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{path} holds weights of {meta.get('model')!r} (fingerprint "
            f"{meta.get('fingerprint')}), the package's is {fingerprint}"
        )
    known = [row[0] for row in db.execute("SELECT version FROM versions ORDER BY version")]
    if version == "best":
        version = _best(db, path)
    if not known or (version is not None and version not in known):
        kept = f"{known[0]} to {known[-1]}" if known else "none"
        raise ConfigError(f"{path}: no version {version}; versions kept: {kept} (keep_versions)")
    wanted = known[-1] if version is None else version
    theta, state, created_at, digest = db.execute(
        "SELECT theta, server_state, created_at, digest FROM versions WHERE version = ?",
        (wanted,),
    ).fetchone()
    if checksum(theta, state) != digest:
        raise ConfigError(
            f"{path}: version {wanted} is damaged (wrong checksum): "
            "choose another one with --weights"
        )
    vector = np.frombuffer(theta, "<f4").astype(np.float32)
    agents, evaluation = _round_result(db, wanted)
    return StoredVersion(meta.get("federation", ""), wanted, vector, created_at, agents, evaluation)


def _best(db: sqlite3.Connection, path: Path) -> int:
    """Returns the best version by the metric that stops the federation."""
    rows = db.execute("SELECT course FROM courses ORDER BY version DESC LIMIT 1").fetchall()
    best = json.loads(rows[0][0])["best"] if rows else None
    if not best or not best["version"]:
        raise ConfigError(
            f"{path}: no version was measured on held-out rows, so none is known to be the best: "
            "leave --best out for the latest"
        )
    return int(best["version"])


def _round_result(db: sqlite3.Connection, version: int) -> tuple[int, dict[str, float]]:
    """Returns how many agents made a version, and their loss and metrics."""
    for (origin,) in db.execute("SELECT origin FROM rollbacks WHERE version = ?", (version,)):
        return _round_result(db, origin)
    query = "SELECT summary FROM rounds WHERE status IN ('committed', 'undone') AND version = ?"
    for (text,) in db.execute(query, (version,)):
        record: dict[str, Any] = json.loads(text)
        found = {"loss": record["loss"], **record["metrics"]} if record["evaluated"] else {}
        return record["reported"], {k: v for k, v in found.items() if v is not None}
    return 0, {}
