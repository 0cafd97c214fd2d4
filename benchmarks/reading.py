"""Reading a device's data: memory and time for 200 MB of CSV, beside numpy and a script's loop.

Each case is read in a process of its own, which has imported all that an agent imports and read a
file of 4 MB before. Memory is what the process held at most while it read (VmHWM, reset before),
less what it held before it (VmRSS).

    logger      time, site and 20 readings a line, of which a model takes 8, and a target
    commas      the same as semicolons and decimal commas
    gaps        the same, every 100th line has a reading `unavailable`, `nan: drop`
    all         the same, a model that takes all 20
    device      the same as logger, `normalise: device`, the first time
    sqlite      the rows of logger in a table
    windows     50 Hz of three axes as windows of 128 readings, resampled
    numpy       np.loadtxt of the columns of logger into float32
    csv         a loop over Python's csv module into lists, as scripts do
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, budget, finish, option_parser, run_worker, shown, spread

import edge_agent.service  # noqa: F401  all that an agent imports
from edge_agent.data.config import DataConfig, InputSource, TargetSource
from edge_agent.data.dataset import load_dataset
from edge_agent.data.file_settings import TimeConfig, WindowConfig
from fedge.system import return_freed_memory
from learning.vector.parameters import Layout, ParameterSpec
from models.package.spec import ModelSpec, TensorSpec

MEGABYTES = 200
READINGS = 20
TAKEN = 8
COLUMNS = tuple(f"r{n}" for n in range(READINGS))
MINE = ("logger", "commas", "gaps", "all", "device", "sqlite", "windows")
OTHERS = ("numpy", "csv")
BLOCK = 20_000


def write_logger(path: Path, megabytes: int, *, commas: bool = False, gaps: bool = False) -> None:
    """Lines like `2026-01-01T00:00:00+00:00,site-3,20.123,...`, a minute apart."""
    rng = np.random.default_rng(0)
    line = 0
    with path.open("w") as file:
        titles = ",".join(("time", "site", *COLUMNS, "power"))
        file.write((titles.replace(",", ";") if commas else titles) + "\n")
        while file.tell() < megabytes * 1_000_000:
            values = rng.normal(20, 5, (BLOCK, READINGS + 1))
            for row in values.tolist():
                stamp = datetime.fromtimestamp(1_767_225_600 + 60 * line, UTC).isoformat()
                cells = [stamp, f"site-{line % 7}", *(f"{value:.3f}" for value in row)]
                if gaps and line % 100 == 0:
                    cells[2 + line // 100 % TAKEN] = "unavailable"
                text = ",".join(cells)
                if commas:
                    text = text.replace(",", ";").replace(".", ",")
                file.write(text + "\n")
                line += 1


def write_motion(path: Path, megabytes: int) -> None:
    """Lines like `1767225600.020,0.123,-9.812,0.044,2`, 50 a second."""
    rng = np.random.default_rng(0)
    line = 0
    with path.open("w") as file:
        file.write("t,ax,ay,az,activity\n")
        while file.tell() < megabytes * 1_000_000:
            values = rng.normal(0, 5, (BLOCK, 3))
            jitter = rng.uniform(-0.003, 0.003, BLOCK).tolist()
            for (x, y, z), off in zip(values.tolist(), jitter, strict=True):
                t = 1_767_225_600 + line / 50 + off
                file.write(f"{t:.4f},{x:.3f},{y:.3f},{z:.3f},{line // 10_000 % 6}\n")
                line += 1


def write_table(path: Path, source: Path) -> None:
    """The rows of a logger's file as a table of REAL columns."""
    with closing(sqlite3.connect(path)) as database, source.open() as file:
        lines = csv.reader(file)
        titles = next(lines)
        kinds = ", ".join(f"{name} {'REAL' if name in COLUMNS else ''}" for name in titles)
        database.execute(f"CREATE TABLE readings ({kinds})")
        marks = ", ".join("?" * len(titles))
        database.executemany(f"INSERT INTO readings VALUES ({marks})", lines)
        database.commit()


def spec_of(shape: tuple[int, ...], classes: int = 0) -> ModelSpec:
    target = TensorSpec("target", (), "int32" if classes else "float32")
    return ModelSpec(
        name="reading",
        inputs=(TensorSpec("x", shape, mean=(20.0,), std=(5.0,)),),
        targets=(target,),
        outputs=(TensorSpec("y", (classes,) if classes else ()),),
        loss="mse",
        metrics=(),
        batch_size=32,
        layout=Layout((ParameterSpec("w", (1,)),)),
    )


def configured(case: str, path: Path) -> tuple[DataConfig, ModelSpec]:
    common: dict[str, Any] = {"path": str(path), "max_rows": 100_000_000}
    if case == "windows":
        window = WindowConfig(every=0.02, length=128, columns=("ax", "ay", "az"), label="majority")
        target = TargetSource(column="activity")
        config = DataConfig(time=TimeConfig(column="t"), window=window, target=target, **common)
        return config, spec_of((128, 3), 6)
    taken = COLUMNS if case == "all" else COLUMNS[:TAKEN]
    config = DataConfig(
        inputs={"x": InputSource(columns=taken)},
        target=TargetSource(column="power"),
        nan="drop" if case == "gaps" else "refuse",
        normalise="device" if case == "device" else "spec",
        **common,
    )
    return config, spec_of((len(taken),))


def read(case: str, path: Path) -> int:
    """Reads a file; returns the number of rows."""
    if case == "numpy":
        columns = range(2, 2 + TAKEN)
        rows = np.loadtxt(path, np.float32, delimiter=",", skiprows=1, usecols=columns)
        return len(rows)
    if case == "csv":
        with path.open() as file:
            lines = csv.reader(file)
            next(lines)
            values = [[float(cell) for cell in line[2 : 2 + TAKEN]] for line in lines]
        return len(np.array(values, np.float32))
    config, spec = configured(case, path)
    data = load_dataset(config, spec, Path())
    return data.num_train + data.num_test


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def worker(case: str, path: Path, warm: Path) -> Report:
    """Rows, seconds and bytes of one reading."""
    read(case, warm)
    gc.collect()
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))
    before = status_bytes("VmRSS")
    began_s, cpu_s = time.monotonic(), time.process_time()
    rows = read(case, path)
    return {
        "rows": rows,
        "seconds": time.monotonic() - began_s,
        "cpu_seconds": time.process_time() - cpu_s,
        "bytes": status_bytes("VmHWM") - before,
        "before_bytes": before,
    }


def made(folder: Path, case: str, megabytes: float, kind: str) -> Path:
    """The file of a case, written if it is not there; `kind` is data or warm."""
    same = "logger" if case in ("all", "device", "numpy", "csv") else case
    path = folder / f"{kind}-{same}.{'sqlite' if case == 'sqlite' else 'csv'}"
    size = int(megabytes) if kind == "data" else 0
    if path.exists():
        return path
    if case == "windows":
        write_motion(path, size or 1)
    elif case == "sqlite":
        write_table(path, made(folder, "logger", megabytes, kind))
    else:
        write_logger(path, size or 1, commas=case == "commas", gaps=case == "gaps")
    return path


def measure(options: argparse.Namespace) -> Report:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fedge-reading-", dir=options.folder) as name:
        folder = Path(name)
        for case in (*MINE, *OTHERS):
            path, warm = (made(folder, case, options.megabytes, kind) for kind in ("data", "warm"))
            runs = [
                run_worker(__file__, [case, str(path), str(warm)], 900) for _ in range(options.runs)
            ]
            found[case] = {
                "file_bytes": path.stat().st_size,
                "rows": runs[0]["rows"],
                "bytes": spread(run["bytes"] for run in runs),
                "cpu_seconds": spread(run["cpu_seconds"] for run in runs),
                "seconds": spread(run["seconds"] for run in runs),
                "before_bytes": spread(run["before_bytes"] for run in runs),
            }
            if case not in ("logger", "windows"):
                path.unlink() if path.name != "data-logger.csv" else None
    worst = max(found[case]["bytes"]["median"] for case in ("logger", "commas", "gaps"))
    return {
        "megabytes": options.megabytes,
        "cases": found,
        "budgets": [budget(worst / 1e6, 80, "MB while 200 MB are read: logger, commas, gaps")],
    }


def show(report: Report) -> None:
    print(f"{'':10s}{'file MB':>9s}{'rows':>11s}  {'MB of memory':20s}{'processor s':20s}")
    for case, row in report["cases"].items():
        memory, seconds = shown(row["bytes"], 1e-6), shown(row["cpu_seconds"])
        size = row["file_bytes"] / 1e6
        print(f"{case:10s}{size:>9.0f}{row['rows']:>11,}  {memory:20s}{seconds:20s}")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="for the files, some 700 MB")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        case, path, warm = options.worker
        print(json.dumps(worker(case, Path(path), Path(warm))))
        sys.exit()
    finish("reading", measure(options), options, show)


if __name__ == "__main__":
    main()
