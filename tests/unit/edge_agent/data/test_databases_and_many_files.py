"""SQLite files, and many files that a pattern names."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.config import DataConfig
from edge_agent.data.dataset import load_dataset
from edge_agent.data.files import Progress
from fedge.errors import ConfigError, DataError
from tests.unit.edge_agent.training.dataset_files import (
    CLASSES,
    config,
    csv_config,
    make_spec,
    refusal,
)


def sqlite(folder: Path, *statements: str, name: str = "data.sqlite") -> Path:
    with closing(sqlite3.connect(folder / name)) as file:
        for statement in statements:
            file.execute(statement)
        file.commit()
    return folder / name


def of_sqlite(**keys: Any) -> DataConfig:
    return csv_config(**{"path": "data.sqlite", "test_fraction": 0, **keys})


TABLE = 'CREATE TABLE "my readings" (a REAL, "b (m)" INTEGER, price, note TEXT)'
ROWS = """INSERT INTO "my readings" VALUES (1.5, 2, 3, 'x'), (4, NULL, 6, 'y'), (7, 8, '9', 'z')"""


# -- SQLite --------------------------------------------------------------------------------------


def test_the_only_table_of_a_file_is_read(tmp_path: Path) -> None:
    sqlite(tmp_path, TABLE, ROWS)
    data = load_dataset(of_sqlite(nan="drop"), make_spec(), tmp_path)
    assert data.arrays["x"].tolist() == [[1.5, 2], [7, 8]]
    assert data.arrays["target"].tolist() == [3, 9]
    assert refusal(tmp_path, of_sqlite()).startswith("data.sqlite: row 2, column 'b': nan is no")


def test_a_query_chooses_rows_and_columns(tmp_path: Path) -> None:
    sqlite(tmp_path, TABLE, ROWS)
    query = "SELECT a, 10 * a AS b, price FROM \"my readings\" WHERE note != 'y' ORDER BY a DESC"
    data = load_dataset(of_sqlite(query=query), make_spec(), tmp_path)
    assert data.arrays["x"].tolist() == [[7, 70], [1.5, 15]]


def test_times_groups_classes_and_windows_work_as_in_a_csv(tmp_path: Path) -> None:
    sqlite(
        tmp_path,
        "CREATE TABLE states (at INTEGER, a, b, price TEXT, site TEXT)",
        "INSERT INTO states VALUES (1700000002000, 2, 0, 'walk', 'n'), "
        "(1700000001000, 1, 0, 'walk', 'n'), (1700000003000, 3, 0, 'run', 'n')",
    )
    cfg = of_sqlite(time={"column": "at"}, group="site")
    data = load_dataset(cfg, make_spec(target=CLASSES), tmp_path)
    assert data.arrays["x"][:, 0].tolist() == [1, 2, 3]
    assert data.arrays["target"].tolist() == [1, 1, 2]


def test_more_rows_than_a_block_are_read(tmp_path: Path) -> None:
    sqlite(
        tmp_path,
        "CREATE TABLE t (a, b, price)",
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 9000) "
        "INSERT INTO t SELECT i, 2 * i, i FROM n",
    )
    data = load_dataset(of_sqlite(), make_spec(), tmp_path)
    assert data.arrays["target"].tolist() == list(range(9000))


def test_a_database_is_not_written_to(tmp_path: Path) -> None:
    path = sqlite(tmp_path, TABLE, ROWS)
    before = path.read_bytes()
    for query in ('DELETE FROM "my readings"', "CREATE TABLE x (y)", "SELECT 1; SELECT 2"):
        with pytest.raises(DataError, match=r"data\.sqlite: (attempt to write|You can only)"):
            load_dataset(of_sqlite(query=query), make_spec(), tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["data.sqlite"]


@pytest.mark.parametrize(
    ("statements", "keys", "expected"),
    [
        ((TABLE,), {"table": "my reading"}, "no table 'my reading'; did you mean my readings?"),
        (
            (TABLE, "CREATE TABLE other (z)"),
            {},
            "which table? Write `table: my readings` into data; tables: my readings, other",
        ),
        ((), {}, "which table? Write `table: NAME` into data; tables: none"),
        ((TABLE,), {"query": "SELECT z FROM t"}, "no such table: t"),
        (
            (TABLE, "INSERT INTO \"my readings\" VALUES (1, x'00', 3, 4)"),
            {},
            "row 1, column 'b': b'\\x00' is no number",
        ),
    ],
)
def test_a_database_that_does_not_fit_says_why(
    tmp_path: Path, statements: tuple[str, ...], keys: dict[str, Any], expected: str
) -> None:
    sqlite(tmp_path, *statements)
    assert refusal(tmp_path, of_sqlite(**keys)).startswith(f"data.sqlite: {expected}")


def test_what_is_no_database_says_so(tmp_path: Path) -> None:
    assert refusal(tmp_path, of_sqlite()) == (
        "data.sqlite: cannot be read: No such file or directory"
    )
    (tmp_path / "data.sqlite").write_bytes(b"a,b,price\n" * 100)
    assert refusal(tmp_path, of_sqlite()) == "data.sqlite: file is not a database"


def test_tables_and_queries_are_for_databases() -> None:
    with pytest.raises(ConfigError, match="table and query are for SQLite files"):
        csv_config(table="t")
    with pytest.raises(ConfigError, match="give table or query, not both"):
        of_sqlite(table="t", query="SELECT 1")
    with pytest.raises(ConfigError, match=r"csv says how a \.csv file is written"):
        of_sqlite(csv={"separator": ";"})


def test_an_agent_without_a_database_does_not_load_sqlite_and_zones() -> None:
    code = (
        "import sys, edge_agent.config, edge_agent.service; "
        "print([n for n in ('sqlite3', 'zoneinfo', 'edge_agent.data.formats.csv', "
        "'edge_agent.data.windows', 'edge_agent.data.formats.npz') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


# -- many files ----------------------------------------------------------------------------------


def many(folder: Path) -> None:
    (folder / "records").mkdir()
    for name, start in (("b", 2), ("a", 0), ("c", 4)):
        text = "a,b,price\n" + "".join(f"{n},1,{n}\n" for n in (start, start + 1))
        (folder / "records" / f"{name}.csv").write_text(text)
    (folder / "records" / "notes.md").write_text("nothing")


def test_files_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    many(tmp_path)
    data = load_dataset(csv_config(path="records/*.csv", test_fraction=0), make_spec(), tmp_path)
    assert data.arrays["target"].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.places is not None
    assert data.places.name(3).endswith("records/b.csv: line 3")


def test_each_file_may_be_a_recording(tmp_path: Path) -> None:
    many(tmp_path)
    cfg = csv_config(path="records/*.csv", group="file.name", test_fraction=0.5)
    data = load_dataset(cfg, make_spec(), tmp_path)
    assert data.part("test")["target"].tolist() == [1, 3, 5]


def test_a_fault_names_the_file_of_the_pattern(tmp_path: Path) -> None:
    many(tmp_path)
    cfg = csv_config(path="records/*.csv")
    (tmp_path / "records/b.csv").write_text("a,b,price\n1,2,3\n1,x!,3\n")
    assert refusal(tmp_path, cfg).startswith("records/b.csv: line 3, column 'b': 'x!' is no number")
    (tmp_path / "records/b.csv").write_text("a,price\n1,2\n")
    assert refusal(tmp_path, cfg).startswith("records/b.csv: no column 'b'; columns: a, price")
    (tmp_path / "records/b.csv").write_text("price,b,a\n9,1,2\n")
    data = load_dataset(cfg, make_spec(), tmp_path)
    assert data.arrays["x"][2].tolist() == [2, 1]  # columns are found by their names


def test_files_of_arrays_are_put_behind_each_other(tmp_path: Path) -> None:
    for name, labels in (("b", ["run"]), ("a", ["rest", "walk"])):
        np.savez(tmp_path / f"{name}.npz", x=np.full((len(labels), 2), ord(name)), y=labels)
    spec = make_spec(target=CLASSES)
    data = load_dataset(config("*.npz", test_fraction=0), spec, tmp_path)
    assert data.arrays["target"].tolist() == [0, 1, 2]
    assert data.arrays["x"][:, 0].tolist() == [97, 97, 98]
    np.savez(tmp_path / "b.npz", x=np.ones((1, 2)), y=np.array([7]))
    assert refusal(tmp_path, config("*.npz"), spec).startswith("b.npz: row 0, column 'y': 7 is not")
    assert refusal(tmp_path, config("*.npz", max_rows=2), spec).startswith("b.npz: 3 rows, max_row")


def test_patterns_that_name_nothing_say_so(tmp_path: Path) -> None:
    many(tmp_path)
    assert refusal(tmp_path, csv_config(path="records/x*.csv")) == (
        "records/x*.csv: no file has a name like this"
    )
    assert refusal(tmp_path, csv_config(path="recs/*.csv")).endswith(
        "no file has a name like this; there is no folder recs"
    )
    with pytest.raises(
        ConfigError, match=r"a folder of files is a pattern: `path: folder/\*\.csv`"
    ):
        csv_config(path="records")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "run[1].csv").write_text("a,b,price\n1,2,3\n")
    data = load_dataset(csv_config(path="run[1].csv"), make_spec(), tmp_path)
    assert data.arrays["target"].tolist() == [3]


# -- progress ------------------------------------------------------------------------------------


def test_progress_is_told_every_few_seconds_over_all_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    for path in (one, two):
        path.write_bytes(b"x" * 500)
    now = [0.0]
    progress = Progress(tmp_path / "*.csv", [one, two], lambda: now[0])
    with caplog.at_level(logging.INFO):
        for now[0], path, position, rows in (
            (4.0, one, 100, 10),
            (5.0, one, 250, 1_500),
            (6.0, one, 500, 2_000),
            (10.0, two, 250, 3_000),
        ):
            progress.read(path, position, rows)
    told = [record.getMessage().replace(f"{tmp_path}/", "") for record in caplog.records]
    assert told == ["*.csv: 25 % read, 1,500 rows", "*.csv: 75 % read, 3,000 rows"]
