"""Versions of θ in a federation's state folder, for those who only read.

The coordinator writes them (`coordinator.store`); a model is released from one of them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """One version of θ and where it comes from.

    Attributes:
        federation: its name.
        version: of θ.
        theta: float32, shape (P,).
        created_at: seconds since 1970.
        agents: whose updates made it; 0 for version 0.
        figures: loss and metrics on the agents' held-out rows; empty where nothing was evaluated.
    """

    federation: str
    version: int
    theta: F32
    created_at: float
    agents: int
    figures: dict[str, float]


def checksum(*parts: object) -> bytes:
    """Of what a flipped bit would change unnoticed: SQLite itself has no checksums.

    Empty, which no digest is, when a part is no bytes: that too is what a flipped bit does.
    """
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            return b""
        digest.update(part)
    return digest.digest()


def read_version(folder: Path, version: int | None, fingerprint: str) -> StoredVersion:
    """A version of θ, the latest when none is named; also while the coordinator runs.

    Args:
        folder: the coordinator's `state_dir`.
        version: which; None takes the latest.
        fingerprint: of the model that it must be of.

    Raises:
        ConfigError: no such folder or version, another model, or the file is damaged.
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
    db: sqlite3.Connection, path: Path, version: int | None, fingerprint: str
) -> StoredVersion:
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{path} holds weights of {meta.get('model')!r} (fingerprint "
            f"{meta.get('fingerprint')}), the package's is {fingerprint}"
        )
    known = [row[0] for row in db.execute("SELECT version FROM versions ORDER BY version")]
    if not known or (version is not None and version not in known):
        kept = f"{known[0]} to {known[-1]}" if known else "none"
        raise ConfigError(f"{path}: no version {version}; versions kept: {kept} (keep_versions)")
    wanted = known[-1] if version is None else version
    theta, state, created_at, digest = db.execute(
        "SELECT theta, server_state, created_at, digest FROM versions WHERE version = ?",
        (wanted,),
    ).fetchone()
    if checksum(theta, state) != digest:
        raise ConfigError(f"{path}: version {wanted} is damaged: its checksum is wrong")
    vector = np.frombuffer(theta, "<f4").astype(np.float32)
    agents, figures = _made_by(db, wanted)
    return StoredVersion(meta.get("federation", ""), wanted, vector, created_at, agents, figures)


def _made_by(db: sqlite3.Connection, version: int) -> tuple[int, dict[str, float]]:
    """How many agents made a version, and what they measured of it."""
    for (text,) in db.execute("SELECT record FROM rounds"):
        record: dict[str, Any] = json.loads(text)
        if record["version"] == version and record["status"] == "committed":
            found = {"loss": record["loss"], **record["metrics"]} if record["evaluated"] else {}
            return record["reported"], {k: v for k, v in found.items() if v is not None}
    return 0, {}
