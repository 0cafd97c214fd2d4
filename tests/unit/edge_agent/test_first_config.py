"""`fedge agent init`: what it makes of a data file loads, and is what `check` takes."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edge_agent.config import AgentConfig
from edge_agent.data.config import DataConfig
from fedge.command import cli
from fedge.yaml_config import load_config

HOUSES = "median_income,rooms_per_household,price (USD)\n3.2,5.1,1.8\n3.3,5.0,1.9\n3.1,4.8,1.7\n"


def agent(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ("agent", *arguments))


def made(folder: Path, data: str, model: str, *more: str) -> tuple[DataConfig, str, Result]:
    """The data section written for a file, the whole text, and what was said."""
    out = folder / "agent.yaml"
    options = ["--model", model] if model else []
    done = agent("init", "--data", str(folder / data), "--out", str(out), *options, *more)
    assert done.exit_code == 0, done.output
    return load_config(out, AgentConfig).data, out.read_text(), done


def checked(folder: Path, model: str) -> Result:
    """What `check` says, and the data checks of `doctor` beside it."""
    config = str(folder / "agent.yaml")
    done = agent("check", "--config", config, "--model", model)
    assert done.exit_code == 0, done.output
    doctor = agent("doctor", "--offline", "--json", "--config", config, "--model", model)
    states = {one["name"]: one["state"] for one in json.loads(doctor.output)["checks"]}
    assert states["data"] != "failed"
    return done


def test_columns_named_like_the_model_s_features_are_found(tmp_path: Path) -> None:
    (tmp_path / "houses.csv").write_text(HOUSES)
    data, text, done = made(tmp_path, "houses.csv", "house_price")
    assert data.path == "houses.csv"
    assert data.inputs["features"].columns == ("median_income", "rooms_per_household")
    assert data.target is not None
    assert data.target.column == "price (USD)"
    assert "reads       3 rows" in done.output
    assert "nan: refuse" in text
    assert "learn    2 rows" in checked(tmp_path, "house_price").output


def test_a_spreadsheet_s_file_is_described_as_it_is_written(tmp_path: Path) -> None:
    text = (
        "Datum;Median income (10k);Rooms per Household;Preis in €\r\n"
        "31.12.2025 10:00;3,2;5,1;1,8\r\n31.12.2025 11:00;3,35;-;1,9\r\n"
        "31.12.2025 12:00;3,1;gestört;1,7\r\n31.12.2025 13:00;3,6;5,6;2,1\r\n"
    )
    (tmp_path / "haus.csv").write_bytes(text.encode("cp1252"))
    data, written, _ = made(tmp_path, "haus.csv", "house_price")
    assert data.inputs["features"].columns == ("Median income (10k)", "Rooms per Household")
    assert (data.csv.separator, data.csv.decimal, data.csv.encoding) == (";", ",", "cp1252")
    assert data.csv.missing == ("gestört",)
    assert data.nan == "drop"
    assert data.time is not None
    assert data.time.column == "Datum"
    assert "do these words mean that there is no reading?" in written
    assert "learn    2 rows" in checked(tmp_path, "house_price").output


@pytest.mark.parametrize(
    ("stamps", "form"),
    [
        (["12/31/2025 23:59", "01/01/2026 00:00"], "%m/%d/%Y %H:%M"),
        (["31/12/2025 23:59", "01/01/2026 00:00"], "%d/%m/%Y %H:%M"),
        (["01/12/2025 23:59", "02/12/2025 00:00"], "%d/%m/%Y %H:%M"),
        (["2025-12-31T23:59:00Z", "2026-01-01T00:00:00Z"], "auto"),
        (["1767225540", "1767225600"], "auto"),
        (["1767225540000", "1767225600000"], "auto"),
        (["31.12.2025 23:59:00.000", "01.01.2026 00:00:00.500"], "auto"),
        (["01/12/2025 23:59:59.250", "02/12/2025 00:00:00.000"], "%d/%m/%Y %H:%M:%S.%f"),
    ],
)
def test_times_are_found_and_doubts_are_told(tmp_path: Path, stamps: list[str], form: str) -> None:
    lines = [f"{stamp},{n},5.0,1.8\n" for n, stamp in enumerate(stamps)]
    head = "timestamp,median_income,rooms_per_household,price\n"
    (tmp_path / "houses.csv").write_text(head + "".join(lines))
    data, text, _ = made(tmp_path, "houses.csv", "house_price")
    assert data.time is not None
    assert (data.time.column, data.time.format) == ("timestamp", form)
    assert ("which is the day" in text) == stamps[0].startswith("01/12")
    checked(tmp_path, "house_price")


@pytest.mark.parametrize("name", ["timestamp", "ts_ms", "date", "Datum", "Zeit [ms]", "t"])
@pytest.mark.parametrize("unit", [1, 1000])
def test_an_epoch_is_a_time_where_its_name_says_so(tmp_path: Path, name: str, unit: int) -> None:
    (tmp_path / "room.csv").write_text(f"{name},temp,label\n{1_767_225_540 * unit},20.5,1\n")
    assert made(tmp_path, "room.csv", "")[0].time is not None
    (tmp_path / "room.csv").write_text(f"setting,{name},label\n{1_767_225_540 * unit},20.5,1\n")
    assert made(tmp_path, "room.csv", "", "--force")[0].time is None


def test_windows_are_cut_where_the_model_takes_them(tmp_path: Path) -> None:
    names = ["acc x", "acc y", "acc z", "gyr x", "gyr y", "gyr z"]
    rng = np.random.default_rng(0)
    lines = [
        ",".join([f"{1.7e9 + n / 50:.2f}", *(f"{v:.3f}" for v in row), ["pen", "abd"][n % 2]])
        for n, row in enumerate(rng.normal(size=(600, 6)).tolist())
    ]
    text = "\n".join([",".join(["time", *names, "exercise"]), *lines, ""])
    (tmp_path / "walks.csv").write_text(text)
    data, written, done = made(tmp_path, "walks.csv", "wearable_activity")
    assert data.window is not None
    assert (data.window.length, data.window.columns) == (100, tuple(names))
    assert data.target is not None
    assert (data.target.column, data.target.ignore_case) == ("exercise", True)
    assert "taken in the order of the file: is this the model's order?" in done.output
    assert "reads       6 windows of 100 readings, cut from 600 rows" in done.output
    assert f"# window: {{length: 100, columns: [{', '.join(names)}], every: 0.02}}" in written
    assert "learn    5 rows" in checked(tmp_path, "wearable_activity").output


def test_classes_in_another_case_are_read(tmp_path: Path) -> None:
    from models.zoo import load_zoo

    spec = load_zoo("heart_disease").spec
    names, classes = spec.inputs[0].features, spec.targets[0].classes
    lines = [",".join([*("1" for _ in names), classes[n % 2].upper()]) + "\n" for n in range(20)]
    (tmp_path / "heart.csv").write_text(",".join([*names, "Result"]) + "\n" + "".join(lines))
    data, _, _ = made(tmp_path, "heart.csv", "heart_disease")
    assert data.target is not None
    assert (data.target.column, data.target.ignore_case) == ("Result", True)
    checked(tmp_path, "heart_disease")


def test_arrays_are_found_by_name_and_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", rows=np.ones((20, 2)), price=np.arange(20.0))
    data, text, _ = made(tmp_path, "data.npz", "house_price")
    assert data.inputs["features"].array == "rows"
    assert data.target is not None
    assert data.target.array == "price"
    assert "the only guess by its shape" in text
    checked(tmp_path, "house_price")


def test_the_largest_table_of_a_database_is_taken(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "home.db")) as file:
        file.execute("CREATE TABLE meta (k, v)")
        file.execute('CREATE TABLE "the houses" (median_income, rooms_per_household, price)')
        file.executemany('INSERT INTO "the houses" VALUES (?, 5.0, 1.8)', [(n,) for n in range(9)])
        file.commit()
    data, text, _ = made(tmp_path, "home.db", "house_price")
    assert data.table == "the houses"
    assert "there are also: meta" in text
    checked(tmp_path, "house_price")
    assert made(tmp_path, "home.db", "", "--table", "meta", "--force")[0].table == "meta"


def test_many_files_are_described_by_the_first(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(HOUSES)
    data, text, done = made(tmp_path, "*.csv", "house_price")
    assert data.path == "*.csv"
    assert "2 files" in text
    assert "reads       6 rows" in done.output


def test_without_a_model_the_file_still_loads(tmp_path: Path) -> None:
    (tmp_path / "room.csv").write_text("time,temp,hum,label\n2026-01-01,20.5,41,on\n")
    data, text, _ = made(tmp_path, "room.csv", "")
    assert data.inputs == {}
    assert data.target is not None
    assert data.target.column == "label"
    assert "# inputs: {INPUT: {columns: [temp, hum]}}" in text


def test_columns_that_cannot_be_told_are_named_as_doubts(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("a,b,c,d,e\n1,2,3,4,5\n")
    _, text, done = made(tmp_path, "odd.csv", "house_price")
    assert "name 2 columns, in the model's order: median_income, rooms_per_household" in text
    assert "not yet     " in done.output
    assert "no column 'NAME', which is a placeholder: replace it by the column" in done.output


def test_a_placeholder_of_an_array_is_to_be_replaced_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", rows=np.ones((20, 5)), price=np.arange(20.0))
    _, _, done = made(tmp_path, "data.npz", "house_price")
    assert "no array 'NAME', which is a placeholder: replace it by the array" in done.output


@pytest.mark.parametrize("name", ["session", "session_id", "Subject No", "recording"])
def test_a_column_that_tells_recordings_apart_is_suggested(tmp_path: Path, name: str) -> None:
    (tmp_path / "room.csv").write_text(f"{name},temp,label\n1,20.5,on\n2,21.5,off\n")
    _, text, done = made(tmp_path, "room.csv", "")
    assert f"# group: {name}" in text
    assert (
        f"look at     group: are these recordings of their own? Then write group: {name}"
        in done.output
    )
    assert "columns: [temp]" in text


def test_a_file_sorted_by_its_label_is_something_to_look_at(tmp_path: Path) -> None:
    labels = [label for label in ("walk", "run", "sit") for _ in range(10)]
    (tmp_path / "walks.csv").write_text("temp,label\n" + "".join(f"20,{one}\n" for one in labels))
    assert "the file is sorted by label" in made(tmp_path, "walks.csv", "")[2].output
    labels = ["walk", "run", "sit"] * 10
    (tmp_path / "walks.csv").write_text("temp,label\n" + "".join(f"20,{one}\n" for one in labels))
    assert "sorted by" not in made(tmp_path, "walks.csv", "", "--force")[2].output
    (tmp_path / "walks.csv").write_text("temp,label\n" + "20,walk\n" * 1500 + "20,run\n" * 1500)
    done = made(tmp_path, "walks.csv", "", "--force")[2]
    assert "begins with 1,000 rows of one label: is it sorted by it?" in done.output


def test_what_is_odd_about_the_rows_of_a_model_is_told_at_once(tmp_path: Path) -> None:
    lines = [f"3.{n % 7},5.{n % 5},{1.5 + (n > 70) * 2 + n % 3 / 10}\n" for n in range(100)]
    head = "median_income,rooms_per_household,price\n"
    (tmp_path / "houses.csv").write_text(head + "".join(lines))
    assert "are the rows sorted by it?" in made(tmp_path, "houses.csv", "house_price")[2].output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('a,label\n"1,234",1\n"2,345",0\n', "1,234, which may be a decimal number or thousands"),
        ("a;label\n1,234;1\n2,345;0\n", "1,234, which may be a decimal number or thousands"),
        ('a,b,label\n"1,23",0.5,1\n', "both 1,23 and 0.5"),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_asked_about(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "odd.csv").write_text(text)
    _, written, done = made(tmp_path, "odd.csv", "")
    assert "columns: [a" in written
    assert f"not yet     {tmp_path / 'odd.csv'}: has {says}" in done.output
    assert 'write `csv: {decimal: ","}` or' in done.output


def test_quoted_decimal_commas_are_found(tmp_path: Path) -> None:
    head = "median_income,rooms_per_household,price\n"
    (tmp_path / "houses.csv").write_text(head + '"3,2","5,1","1,8"\n"3,1","5,2",2\n' * 5)
    assert made(tmp_path, "houses.csv", "house_price")[0].csv.decimal == ","
    checked(tmp_path, "house_price")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,label\n", "has a header and no rows yet"),
        ("a,label\n1,2\n1,2,3\n1,2\n", "line 3: 3 cells, the header has 2: torn"),
        ("a,label\n" + "1,2\n" * 3000 + "1\n1,2\n", "line 3002: 1 cells, the header has 2: torn"),
    ],
)
def test_a_torn_file_is_told_without_a_model(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "odd.csv").write_text(text)
    assert f"not yet     {tmp_path / 'odd.csv'}: {says}" in made(tmp_path, "odd.csv", "")[2].output
    assert says in made(tmp_path, "odd.csv", "house_price", "--force")[2].output
    (tmp_path / "odd.csv").write_text("a,label\n1,2\n1")  # only its last line: that is left out
    assert "not yet" not in made(tmp_path, "odd.csv", "", "--force")[2].output


def test_a_file_is_never_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "houses.csv").write_text(HOUSES)
    (tmp_path / "agent.yaml").write_text("mine")
    data, out = str(tmp_path / "houses.csv"), str(tmp_path / "agent.yaml")
    arguments = ("init", "--data", data, "--out", out)
    done = agent(*arguments)
    assert done.exit_code == 2
    assert "exists: choose another --out, or replace it with --force" in done.output
    done = agent(*arguments, "--force", "--agent-id", "not an id")
    assert done.exit_code == 2
    assert (tmp_path / "agent.yaml").read_text() == "mine"
    assert agent(*arguments, "--force").exit_code == 0
    assert (tmp_path / "agent.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "none.csv: cannot be read: No such file"),
        ("empty.csv", b"", "empty.csv: the file is empty"),
        ("data.xls", b"1", "data.xls: path must end in .npz, .csv"),
        ("data.db", b"no database" * 100, "data.db: file is not a database"),
        ("data.npz", b"no archive", "data.npz: not an .npz file"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "agent.yaml"
    done = agent("init", "--data", str(tmp_path / name), "--out", str(out))
    assert done.exit_code == 2
    assert says in done.output
    assert done.output.count("\n") == 1
    assert not out.exists()
