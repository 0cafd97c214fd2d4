"""CSV files as spreadsheets, loggers and home automation write them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.dataset import load_dataset, read_ready
from fedge.errors import ConfigError, DataError
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import (
    CLASSES,
    config,
    csv,
    csv_config,
    make_spec,
    refusal,
)


def read(folder: Path, text: str | bytes, **keys: Any) -> list[list[float]]:
    """Inputs and target of each row."""
    csv(folder, text)
    data = load_dataset(csv_config(**{"test_fraction": 0, **keys}), make_spec(), folder)
    rows: list[list[float]] = np.column_stack([data.arrays["x"], data.arrays["target"]]).tolist()
    return rows


# -- separators and decimal signs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a;b;price\r\n20,5;41;0\r\n21,0;40;1\r\n", "csv: {separator: ;, decimal: ','}"),
        ("a\tb\tprice\n20.5\t41\t0\n21.0\t40\t1\n", "csv: {separator: tab}"),
        ("a|b|price\n20.5|41|0\n21.0|40|1\n", "csv: {separator: '|'}"),
        ("sep=;\na;b;price\n20.5;41;0\n21.0;40;1\n", "csv: {separator: ;}"),
        (
            "\ufeffsep=;\r\na;b;price\r\n20,5;41;0\r\n21;40;1\r\n",
            "csv: {separator: ;, decimal: ','}",
        ),
        (
            '"a";"b";"price"\n"20,5";"41";"0"\n"21,0";"40";"1"\n',
            "csv: {separator: ;, decimal: ','}",
        ),
        ("a\tb\tprice\n20,5\t41\t0\n21,0\t40\t1\n", "csv: {separator: tab, decimal: ','}"),
    ],
)
def test_separator_and_decimal_sign_are_found_and_said(
    tmp_path: Path, text: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, text) == [[20.5, 41, 0], [21, 40, 1]]
    assert f"data.csv: read with `{found}`, found by looking" in caplog.text
    table = read_ready(csv_config(), make_spec(), tmp_path)
    assert table.notes == (f"read with `{found}`, found by looking",)


def test_what_is_found_can_be_written_into_the_configuration_and_is_then_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = {"separator": ";", "decimal": ","}
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, "a;b;price\n1,5;2;3\n", csv=written) == [[1.5, 2, 3]]
    assert "found by looking" not in caplog.text


def test_a_file_of_commas_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, "a,b,price\n1.5,2,3\n") == [[1.5, 2, 3]]
    assert not caplog.records


def test_commas_inside_other_columns_decide_nothing(tmp_path: Path) -> None:
    text = "a;note;b;price\n1.5;3,7 or so;2;3\n2.5;4,1;2;3\n"
    assert read(tmp_path, text) == [[1.5, 2, 3], [2.5, 2, 3]]


def test_thousands_are_read_where_the_configuration_says_so(tmp_path: Path) -> None:
    text = "a;b;price\n1.234,5;2;3\n"
    assert read(tmp_path, text, csv={"thousands": "."}) == [[1234.5, 2, 3]]
    text = 'a,b,price\n"1,234.5",2,3\n'
    assert read(tmp_path, text, csv={"thousands": ","}) == [[1234.5, 2, 3]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a;b;price\n1,5;2.5;3\n",
            'data.csv: has both 1,5 and 2.5: write `csv: {decimal: ","}` or '
            '`csv: {decimal: ".", thousands: ","}` into data',
        ),
        ("a;b;price\n1,234;2;3\n", "data.csv: has 1,234, which may be a decimal number or thous"),
        (
            'a,b,price\n1,"1,5",3\n',
            "data.csv: line 2, column 'b': '1,5' is no number; a decimal comma? "
            'Write `csv: {decimal: ","}` into data',
        ),
        (
            "a,b,price\n2026-01-02 03:04,2,3\n",
            "data.csv: line 2, column 'a': '2026-01-02 03:04' is no number; a time? "
            "Write `time: {column: NAME}` into data, and take `time.hour` as input",
        ),
        (
            "a,b,price\noff,2,3\n",
            "data.csv: line 2, column 'a': 'off' is no number; if it means that there is no "
            "reading: `csv: {missing: ['off']}` in data",
        ),
    ],
)
def test_what_cannot_be_told_is_asked_with_the_line_to_write(
    tmp_path: Path, text: str, expected: str
) -> None:
    csv(tmp_path, text)
    assert refusal(tmp_path, csv_config()).startswith(expected)


def test_many_numbers_of_three_decimals_are_no_thousands(tmp_path: Path) -> None:
    lines = [f"{20 + n},{125 * (n % 8):03d};{40 + n},250;{n},000\n" for n in range(20)]
    rows = read(tmp_path, "a;b;price\n" + "".join(lines), csv={"comment": ""})
    assert rows[1] == [21.125, 41.25, 1]
    mixed = "".join(f"1,{234 + n};{900 + n};{n}\n" for n in range(20))
    csv(tmp_path, "a;b;price\n" + mixed)
    assert "which may be a decimal number or thousands" in refusal(tmp_path, csv_config())


def test_what_the_message_says_to_write_works(tmp_path: Path) -> None:
    assert read(tmp_path, 'a,b,price\n1,"1,5",3\n', csv={"decimal": ","}) == [[1, 1.5, 3]]
    assert read(tmp_path, "a;b;price\n1,234;2;3\n", csv={"decimal": ","}) == [
        [pytest.approx(1.234), 2, 3]
    ]
    both = {"decimal": ".", "thousands": ","}
    assert read(tmp_path, "a;b;price\n1,234;2;3\n", csv=both) == [[1234, 2, 3]]
    dropped = read(tmp_path, "a,b,price\noff,2,3\n1,2,3\n", csv={"missing": ["off"]}, nan="drop")
    assert dropped == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"separator": ",", "decimal": ","}, "decimal and separator are both ','"),
        ({"decimal": ".", "thousands": "."}, "decimal and thousands are both '.'"),
        ({"encoding": "utf-9"}, "encoding 'utf-9' is unknown"),
        ({"separator": ";;"}, "expected one of: auto, ,, ;, |, tab"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    keys: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected.replace("|", r"\|")):
        csv_config(csv=keys)


# -- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_a_file_names_itself_are_read(tmp_path: Path, encoding: str) -> None:
    text = "a (°C),b,price\r\n1,2,3\r\n"
    assert read(tmp_path, text.encode(encoding)) == [[1, 2, 3]]


def test_another_encoding_is_named(tmp_path: Path) -> None:
    text = "a (°C),b,price\n1,2,3\n".encode("cp1252")
    csv(tmp_path, text)
    assert refusal(tmp_path, csv_config()).endswith(
        "name its encoding: `csv: {encoding: cp1252}` in data reads what Windows in western "
        "Europe writes"
    )
    assert read(tmp_path, text, csv={"encoding": "cp1252"}) == [[1, 2, 3]]


def test_comments_and_blank_lines_are_passed_over_and_lines_are_counted(tmp_path: Path) -> None:
    text = "# logger 3\n\na,b,price\n# started\n1,2,3\n   \n1,x!,3\n"
    csv(tmp_path, text)
    assert refusal(tmp_path, csv_config()).startswith("data.csv: line 7, column 'b': 'x!' is")
    assert read(tmp_path, text.replace("x!", "4")) == [[1, 2, 3], [1, 4, 3]]
    assert read(tmp_path, "% made\na,b,price\n1,2,3\n", csv={"comment": "%"}) == [[1, 2, 3]]


def test_a_header_in_a_comment_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    assert read(tmp_path, "# logger 3\n# a,b,price\n1,2,3\n4,5,6\n") == [[1, 2, 3], [4, 5, 6]]


def test_an_error_of_a_spreadsheet_is_no_comment(tmp_path: Path) -> None:
    text = "a,b,price\n#N/A,2,3\n#DIV/0!,1,1\n4,5,6\n"
    assert read(tmp_path, text, nan="drop") == [[4, 5, 6]]


def test_quoted_cells_may_hold_separators_and_line_ends(tmp_path: Path) -> None:
    text = 'a,note,b,price\n1,"x, y",2,3\n4,"two\nlines",5,6\n7,z,8,"9"\n1,2,q!,3\n'
    csv(tmp_path, text)
    assert refusal(tmp_path, csv_config()).startswith("data.csv: line 6, column 'b': 'q!'")
    text = text.replace("q!", "0")
    assert read(tmp_path, text) == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 0, 3]]


# -- no reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    ["", "NA", "#N/A", "-", "--", "unavailable", "unknown", "None", "null", "n.a.", "#DIV/0!", "?"],
)
def test_words_for_no_reading_are_dropped_and_counted(
    tmp_path: Path, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"a,b,price\n20.5,41,0\n{word},40,1\n19.7,{word},0\n21.0,42,1\n"
    assert read(tmp_path, text, nan="drop") == [[20.5, 41, 0], [21, 42, 1]]
    assert "2 of 4 rows dropped: no reading, NaN or infinity (a 1, b 1)" in caplog.text
    csv(tmp_path, text)
    assert refusal(tmp_path, csv_config()).startswith(
        "data.csv: line 3, column 'a': nan is no finite number; with `nan: drop`"
    )


def test_home_assistant_writes_words_where_a_sensor_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "temp,hum,label\n20.5,41,0\nunavailable,40,1\n19.7,unknown,0\n22.2,,1\n21.0,42,1\n"
    keys = {"inputs": {"x": {"columns": ["temp", "hum"]}}, "target": {"column": "label"}}
    assert read(tmp_path, text, nan="drop", **keys) == [[20.5, 41, 0], [21, 42, 1]]
    assert "3 of 5 rows dropped: no reading, NaN or infinity (hum 2, temp 1)" in caplog.text


def test_a_number_may_mean_no_reading(tmp_path: Path) -> None:
    text = "a,b,price\n-9999,2,3\n1,-9999.0,3\n4,5,6\n"
    missing = {"missing": ["-9999"]}
    assert read(tmp_path, text, nan="drop", csv=missing) == [[4, 5, 6]]
    assert len(read(tmp_path, text)) == 3


# -- power cuts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    ["22.2,3", "22.2", "22.2,3,", "22.2,3,4e", '22.2,"3', "\0" * 700, "22.\0\0\0", "\0\n\0\0"],
)
def test_a_torn_end_is_left_out_with_a_warning(
    tmp_path: Path, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a,b,price\n20.5,41,0\n21.0,40,1\n19.7,44,0\n"
    keys = {"nan": "drop"} if end == "22.2,3," else {}
    rows = read(tmp_path, text + end, **keys)
    assert rows == [[20.5, 41, 0], [21, 40, 1], [pytest.approx(19.7), 44, 0]]
    if not keys:
        assert len(caplog.records) == 1
        assert "left out" in caplog.text


def test_a_torn_label_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv(tmp_path, "a,b,price\n1,2,walk\n1,2,run\n1,2,wal")
    cfg = csv_config(test_fraction=0)
    data = load_dataset(cfg, make_spec(target=CLASSES), tmp_path)
    assert data.arrays["target"].tolist() == [1, 2]
    assert "data.csv: line 4, the last, is torn: left out" in caplog.text
    assert read_ready(cfg, make_spec(target=CLASSES), tmp_path).notes == (
        "line 4, the last, is torn: left out",
    )


def test_a_last_line_without_an_end_is_whole_when_it_has_all_cells(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(tmp_path, "a,b,price\n1,2,3\n4,5,6") == [[1, 2, 3], [4, 5, 6]]
    assert not caplog.records


def test_a_torn_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n20.5,41,0\n21.0,4\n19.7,44,0\n")
    assert refusal(tmp_path, csv_config()) == "data.csv: line 3: 2 cells, the header has 3"
    csv(tmp_path, "a,b,price\n20.5,41,0\n21.0,40,x\n19.7,44,0\n")
    assert refusal(tmp_path, csv_config()).startswith("data.csv: line 3, column 'price': 'x' is")


def test_lines_with_nuls_in_the_middle_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a,b,price\n1,2,3\n" + "\0" * 3000 + "4,5,6\n7,8,9\n"
    assert read(tmp_path, text) == [[1, 2, 3], [7, 8, 9]]
    assert "data.csv: 1 line with NUL bytes left out" in caplog.text
    many = "a,b,price\n1,2,3\n" + "\0" * (3 << 20)
    assert read(tmp_path, many) == [[1, 2, 3]]


# -- labels --------------------------------------------------------------------------------------


def test_labels_of_another_case_are_read_by_a_setting_that_the_message_names(
    tmp_path: Path,
) -> None:
    csv(tmp_path, "a,b,price\n1,2,Walk\n1,2,RUN\n1,2,rest\n")
    spec = make_spec(target=CLASSES)
    assert refusal(tmp_path, csv_config(), spec) == (
        "data.csv: line 2, column 'price': 'Walk' is none of the 3 classes (rest, walk, run); "
        "only the case differs: add `ignore_case: true` to target in data"
    )
    cfg = csv_config(target={"column": "price", "ignore_case": True}, test_fraction=0)
    assert load_dataset(cfg, spec, tmp_path).arrays["target"].tolist() == [1, 2, 0]


def test_the_exact_name_goes_before_another_case(tmp_path: Path) -> None:
    csv(tmp_path, "a,b,price\n1,2,A\n1,2,a\n")
    spec = make_spec(target=TensorSpec("target", (), "int32", classes=("a", "A")))
    cfg = csv_config(target={"column": "price", "ignore_case": True}, test_fraction=0)
    assert load_dataset(cfg, spec, tmp_path).arrays["target"].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_texts_in_an_npz_are_classes_as_in_a_csv(tmp_path: Path, dtype: str) -> None:
    labels = np.array(["walk", "rest", "run", " walk "]).astype(dtype)
    np.savez(tmp_path / "data.npz", x=np.ones((4, 2)), y=labels)
    spec = make_spec(target=CLASSES)
    data = load_dataset(config(test_fraction=0), spec, tmp_path)
    assert data.arrays["target"].tolist() == [1, 0, 2, 1]
    np.savez(tmp_path / "data.npz", x=np.ones((3, 2)), y=np.array(["walk", "Rest", "rest"]))
    assert refusal(tmp_path, config(), spec).startswith(
        "data.npz: row 1, column 'y': 'Rest' is none of the 3 classes (rest, walk, run); only the"
    )
    cfg = config(target={"array": "y", "ignore_case": True}, test_fraction=0)
    assert load_dataset(cfg, spec, tmp_path).arrays["target"].tolist() == [1, 0, 0]


# -- what to write -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"target": None},
            "data.csv: target is missing: name its column, `target: {column: NAME}` with NAME of: "
            "temp (°C), 'a, b', price in USD",
        ),
        (
            {"inputs": {}},
            "data.csv: x needs 2 columns (shape (2,)), 0 are configured: none; write "
            "`inputs: {x: {columns: [NAME, NAME]}}` with NAME of: temp (°C), 'a, b', price in USD",
        ),
    ],
)
def test_a_missing_key_is_shown_as_it_is_to_be_written(
    tmp_path: Path, keys: dict[str, Any], expected: str
) -> None:
    csv(tmp_path, 'temp (°C),"a, b",price in USD\n1,2,3\n')
    assert refusal(tmp_path, csv_config(**keys)) == expected


def test_features_of_the_model_that_the_file_calls_otherwise_say_what_to_write(
    tmp_path: Path,
) -> None:
    csv(tmp_path, "temp,hum,price\n1,2,3\n")
    spec = make_spec(TensorSpec("room_air", (2,), features=("temperature", "humidity")))
    assert refusal(tmp_path, csv_config(inputs={}), spec) == (
        "data.csv: no column 'temperature'; columns: temp, hum, price; name yours: "
        "`inputs: {room_air: {columns: [NAME, NAME]}}`"
    )
    np.savez(tmp_path / "data.npz", z=np.ones((2, 2)), y=np.ones(2))
    assert refusal(tmp_path, config(), spec) == (
        "data.npz: no array 'room_air'; arrays: z, y; to read another write "
        "`inputs: {room_air: {array: NAME}}` into data"
    )


def test_a_wrong_key_for_the_format_is_shown_as_it_is_to_be_written() -> None:
    with pytest.raises(ConfigError) as caught:
        config("a.csv", inputs={"room air": {"array": "x"}})
    assert str(caught.value).endswith(
        "inputs.room air: a .csv file needs the key columns: "
        "`inputs: {room air: {columns: [NAME, NAME]}}`"
    )


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    for text in ("", "\n\n", "# nothing\n", "sep=;\n"):
        csv(tmp_path, text)
        with pytest.raises(DataError, match="the file is empty, expected a header"):
            load_dataset(csv_config(), make_spec(), tmp_path)
