"""Readings with more digits than float32 has: scaled before they are rounded, in every format."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.dataset import LocalDataset, build_dataset, load_dataset, read_table
from edge_agent.data.formats.csv import _BLOCK, _SAMPLE
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import CLASSES, config, csv, make_spec

#: Epoch seconds and a meter's counter, ten minutes of them.
SECONDS = 1_700_000_000 + 60.0 * np.arange(10)
COUNTER = 123_456_000.0 + 0.25 * np.arange(10)
SPEC = make_spec(TensorSpec("x", (2,), mean=(1.7e9, 123_456_000.0), std=(3600.0, 10.0)))


def written(folder: Path) -> None:
    rows = list(zip(SECONDS.tolist(), COUNTER.tolist(), range(10), strict=True))
    csv(folder, "a,b,price\n" + "".join(f"{a:.0f},{b},{y}\n" for a, b, y in rows))
    np.savez(folder / "data.npz", x=np.stack([SECONDS, COUNTER], 1), y=np.arange(10.0))
    with closing(sqlite3.connect(folder / "data.sqlite")) as file:
        file.execute("CREATE TABLE readings (a INTEGER, b REAL, price REAL)")
        file.executemany("INSERT INTO readings VALUES (?, ?, ?)", rows)
        file.commit()


def loaded(folder: Path, end: str, **keys: Any) -> LocalDataset:
    sources: dict[str, Any] = {
        "inputs": {"x": {"columns": ["a", "b"]}},
        "target": {"column": "price"},
    }
    cfg = config(f"data.{end}", **keys, **({} if end == "npz" else sources))
    return load_dataset(cfg, SPEC, folder)


@pytest.mark.parametrize("end", ["csv", "sqlite", "npz"])
def test_small_changes_of_large_readings_survive(tmp_path: Path, end: str) -> None:
    written(tmp_path)
    data = loaded(tmp_path, end, test_fraction=0)
    assert data.arrays["x"].dtype == np.float32
    assert data.arrays["x"][:, 0] == pytest.approx(np.arange(10) / 60, rel=1e-6)
    assert data.arrays["x"][:, 1] == pytest.approx(np.arange(10) * 0.025, rel=1e-6)


@pytest.mark.parametrize("normalise", ["spec", "device"])
@pytest.mark.parametrize("end", ["csv", "sqlite"])
def test_every_format_gives_the_bits_of_an_npz(tmp_path: Path, end: str, normalise: str) -> None:
    written(tmp_path)
    ours, npz = (loaded(tmp_path, one, normalise=normalise) for one in (end, "npz"))
    for name, array in npz.arrays.items():
        assert np.array_equal(ours.arrays[name], array)
    assert ours.scales["x"].mean == npz.scales["x"].mean


def test_a_measured_scale_is_applied_to_what_is_read_later(tmp_path: Path) -> None:
    written(tmp_path)
    cfg = config(
        "data.csv",
        inputs={"x": {"columns": ["a", "b"]}},
        target={"column": "price"},
        normalise="device",
    )
    first = load_dataset(cfg, SPEC, tmp_path, tmp_path / "state")
    second = load_dataset(cfg, SPEC, tmp_path, tmp_path / "state")
    assert np.array_equal(first.arrays["x"], second.arrays["x"])
    assert len(np.unique(second.arrays["x"][:, 1])) == 10


def test_a_fleet_that_deals_rows_out_keeps_all_digits(tmp_path: Path) -> None:
    written(tmp_path)
    cfg = config(
        "data.csv",
        inputs={"x": {"columns": ["a", "b"]}},
        target={"column": "price"},
        test_fraction=0,
    )
    table = read_table(cfg, SPEC, tmp_path)
    assert table.arrays["x"][:, 1].tolist() == COUNTER.tolist()
    dealt = build_dataset(table, cfg, SPEC, rows=np.array([1, 3]))
    assert dealt.arrays["x"][:, 1] == pytest.approx([0.025, 0.075], rel=1e-6)


@pytest.mark.parametrize("rows", [_SAMPLE - 1, _SAMPLE, _SAMPLE + 1, _SAMPLE + 2 * _BLOCK + 1])
def test_rows_are_the_same_whatever_blocks_they_are_read_in(tmp_path: Path, rows: int) -> None:
    """Also where a block goes cell by cell, and where rows are dropped or put together again."""
    rng = np.random.default_rng(rows)
    x = rng.normal(20, 5, (rows, 2)).round(3)
    labels, group = rng.integers(0, 3, rows), rng.integers(0, 4, rows)
    lost = rng.random(rows) < 0.001
    lost[[3, rows - 1]] = True
    lines = [
        f"{'unknown' if gone else a},{b},{CLASSES.classes[label]},{g}\n"
        for (a, b), label, g, gone in zip(
            x.tolist(), labels.tolist(), group.tolist(), lost.tolist(), strict=True
        )
    ]
    csv(tmp_path, "a,b,price,g\n" + "".join(lines))
    x[lost, 0] = np.nan
    np.savez(tmp_path / "data.npz", x=x, y=labels, g=group)
    spec = make_spec(TensorSpec("x", (2,), mean=(20.0, 20.0), std=(5.0, 5.0)), target=CLASSES)
    for groups in ({}, {"group": "g"}):
        npz = load_dataset(config(nan="drop", **groups), spec, tmp_path)
        cfg = config(
            "data.csv",
            inputs={"x": {"columns": ["a", "b"]}},
            target={"column": "price"},
            nan="drop",
            **groups,
        )
        ours = load_dataset(cfg, spec, tmp_path)
        assert np.array_equal(ours.rows, npz.rows)
        for name, array in npz.arrays.items():
            assert np.array_equal(ours.arrays[name], array), (groups, name)
