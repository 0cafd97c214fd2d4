"""Windows: readings that follow each other become rows of the model, without a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.dataset import EmptyDataError, LocalDataset, load_dataset, read_table
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

SHAPED = TensorSpec("x", (3, 2), features=("a", "b"))


def windows(
    folder: Path,
    text: str,
    window: dict[str, Any],
    *,
    spec: Any = None,
    timed: bool = True,
    **keys: Any,
) -> LocalDataset:
    csv(folder, text)
    cfg = csv_config(
        **{
            "window": {"length": 3, "columns": ["a", "b"], **window},
            "inputs": {},
            "test_fraction": 0,
            **({"time": {"column": "t"}} if timed else {}),
            **keys,
        }
    )
    return load_dataset(cfg, spec or make_spec(SHAPED), folder)


def rows(times: list[Any], start: float = 0) -> str:
    """A grows by 1, b by 10, the target is the row's number."""
    lines = [f"{t},{start + n},{10 * (start + n)},{n}\n" for n, t in enumerate(times)]
    return "t,a,b,price\n" + "".join(lines)


def test_rows_as_they_are_make_windows_that_follow_each_other(tmp_path: Path) -> None:
    data = windows(tmp_path, rows(list(range(8))), {}, timed=False)
    assert data.arrays["x"].tolist() == [
        [[0, 0], [1, 10], [2, 20]],
        [[3, 30], [4, 40], [5, 50]],
    ]
    assert data.arrays["target"].tolist() == [2, 5]  # the last row's
    assert data.places is not None
    assert data.places.name(1).endswith("data.csv: line 7")


def test_a_stride_makes_them_overlap(tmp_path: Path) -> None:
    data = windows(tmp_path, rows(list(range(6))), {"stride": 1}, timed=False)
    assert data.arrays["x"][:, 0, 0].tolist() == [0, 1, 2, 3]


def test_windows_never_cross_groups_and_are_split_in_time(tmp_path: Path) -> None:
    lines = [f"{n},{n},0,{n},{'pq'[n % 2]}\n" for n in range(14)]
    data = windows(tmp_path, "t,a,b,price,g\n" + "".join(lines), {}, timed=False, group="g",
                   test_fraction=0.5)  # fmt: skip
    assert data.arrays["x"][:, :, 0].tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert (data.num_train, data.num_test) == (2, 2)


def test_a_dropped_row_ends_a_window_of_rows_as_they_are(tmp_path: Path) -> None:
    text = rows(list(range(8))).replace("3,3,30,3", "3,unavailable,30,3")
    data = windows(tmp_path, text, {}, timed=False, nan="drop")
    assert data.arrays["x"][:, 0, 0].tolist() == [0, 4]


def test_a_gap_ends_a_window(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 100, 101, 102]
    data = windows(tmp_path, rows(times), {"gap_s": 2})
    assert data.arrays["x"][:, 0, 0].tolist() == [0, 4]
    data = windows(tmp_path, rows(times), {"every": 1})
    assert data.arrays["x"][:, 0, 0].tolist() == [0, 4]
    data = windows(tmp_path, rows(times), {})  # rows as they are, whatever their times
    assert data.arrays["x"][:, 0, 0].tolist() == [0, 3]


def test_readings_out_of_order_are_put_in_order_first(tmp_path: Path) -> None:
    text = "t,a,b,price\n2,2,20,2\n0,0,0,0\n1,1,10,1\n5,5,50,5\n4,4,40,4\n3,3,30,3\n"
    data = windows(tmp_path, text, {"every": 1})
    assert data.arrays["x"][:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert data.arrays["target"].tolist() == [2, 5]


def test_readings_are_interpolated_at_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    data = windows(tmp_path, rows([0, 2, 4]), {"every": 1, "gap_s": 2, "length": 5}, spec=make_spec(
        TensorSpec("x", (5, 2))))  # fmt: skip
    assert data.arrays["x"][0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2]
    assert data.arrays["target"].tolist() == [2]


def test_readings_that_are_faster_than_the_rate_are_averaged(tmp_path: Path) -> None:
    times = [0, 0.75, 1, 1.25, 2, 3]
    data = windows(tmp_path, rows(times), {"every": 1})
    # 0.75, 1 and 1.25 are nearest to 1: the mean of rows 1, 2 and 3
    assert data.arrays["x"][0, :, 0].tolist() == [0, 2, 4]


def test_clocks_that_are_off_by_a_little_give_the_regular_readings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = 1_700_000_000 + 0.02 * np.arange(300) + rng.uniform(-0.004, 0.004, 300)
    times[0] = 1_700_000_000
    lines = [f"{t:.4f},{t - times[0]:.4f},0,0\n" for t in times.tolist()]
    spec = make_spec(TensorSpec("x", (100, 2)))
    data = windows(tmp_path, "t,a,b,price\n" + "".join(lines), {"every": 0.02, "length": 100},
                   spec=spec)  # fmt: skip
    found = data.arrays["x"][:, :, 0].reshape(-1)
    assert found == pytest.approx(0.02 * np.arange(len(found)), abs=2e-4)
    assert len(found) >= 200


def test_the_hour_that_clocks_repeat_or_leave_out_is_no_gap(tmp_path: Path) -> None:
    for day, times in (
        ("2026-10-25", ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]),
        ("2026-03-29", ["00:30", "01:00", "01:30", "03:00", "03:30", "04:00"]),
    ):
        data = windows(
            tmp_path,
            rows([f"{day} {time}:00" for time in times]),
            {"every": 1800},
            time={"column": "t", "zone": "Europe/Berlin"},
        )
        assert data.arrays["x"][:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


# -- as they come --------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 50])
@pytest.mark.parametrize(
    "window",
    [
        {"every": 1.0},
        {"every": 0.4, "stride": 1},
        {"every": 2.5, "stride": 5, "gap_s": 4},
        {"every": 1.0, "ahead": 2},
        {"every": 1.0, "label": "majority"},
        {"every": 1.0, "label": "only", "stride": 2},
        {},
        {"stride": 1, "gap_s": 1.5},
        {"stride": 7},
    ],
)
def test_windows_cut_as_readings_come_are_those_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, window: dict[str, Any]
) -> None:
    rng = np.random.default_rng(piece)
    times = np.cumsum(
        rng.choice([0, 0.4, 0.9, 1.0, 1.1, 8], 300, p=[0.05, 0.1, 0.3, 0.4, 0.1, 0.05])
    )
    lines = []
    for n, t in enumerate(times.tolist()):
        a = "NA" if rng.random() < 0.03 else n
        lines.append(f"{t:.2f},{a},{n % 13},{CLASSES.classes[n // 9 % 3]},{n % 2}\n")
    keys: dict[str, Any] = {"nan": "drop", "group": "g", "spec": make_spec(SHAPED, target=CLASSES)}
    text = "t,a,b,price,g\n" + "".join(lines)
    found = []
    for size in (10**6, piece):
        monkeypatch.setattr("edge_agent.data.windows._PIECE", size)
        monkeypatch.setattr("edge_agent.data.formats.csv._SAMPLE", min(size, 1000))
        monkeypatch.setattr("edge_agent.data.formats.csv._BLOCK", min(size, 4096))
        data = windows(tmp_path, text, window, **keys)
        assert data.places is not None
        ends = [data.places.line(row) for row in data.rows.tolist()]
        order = np.lexsort((np.array(ends), data.arrays["x"][:, 0, 0]))
        found.append([np.array(ends)[order], *(data.arrays[name][order] for name in data.arrays)])
    assert len(found[0][0]) > 10
    for whole, in_pieces in zip(*found, strict=True):
        np.testing.assert_array_equal(in_pieces, whole)


def test_readings_that_come_too_late_are_sorted_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_agent.data.windows._PIECE", 4)
    monkeypatch.setattr("edge_agent.data.formats.csv._SAMPLE", 4)
    monkeypatch.setattr("edge_agent.data.formats.csv._BLOCK", 4)
    lines = [f"{n},{n},0,{n}\n" for n in range(30)]
    text = "t,a,b,price\n" + "".join([*lines[6:], *lines[:6]])
    with caplog.at_level("INFO"):
        data = windows(tmp_path, text, {"every": 1})
    assert data.arrays["x"][:, 0, 0].tolist() == list(range(0, 30, 3))
    assert "not in the order of time: they are read again and sorted" in caplog.text


# -- labels --------------------------------------------------------------------------------------


def labelled(folder: Path, labels: str, label: str, **window: Any) -> list[float]:
    lines = "".join(f"{n},0,0,{one}\n" for n, one in enumerate(labels.split()))
    keys = {"label": label, "stride": 1, **window}
    data = windows(folder, "t,a,b,price\n" + lines, keys, timed=False,
                   spec=make_spec(SHAPED, target=CLASSES))  # fmt: skip
    labels_found: list[float] = data.arrays["target"].tolist()
    return labels_found


def test_the_label_of_a_window_follows_its_rule(tmp_path: Path) -> None:
    labels = "rest rest walk walk run"
    assert labelled(tmp_path, labels, "last") == [1, 1, 2]
    assert labelled(tmp_path, labels, "majority") == [0, 1, 1]
    assert labelled(tmp_path, "rest walk run run", "majority") == [2, 2]  # of equals the latest
    assert labelled(tmp_path, labels, "last", ahead=1) == [1, 2]
    assert labelled(tmp_path, "rest rest rest walk", "only") == [0]


def test_a_number_is_the_mean_or_the_last_or_one_ahead(tmp_path: Path) -> None:
    text = rows(list(range(6)))
    for window, found in (
        ({"label": "mean"}, [1, 4]),
        ({"label": "last"}, [2, 5]),
        ({"label": "last", "ahead": 2}, [4]),
    ):
        data = windows(tmp_path, text, window, timed=False)
        assert data.arrays["target"].tolist() == found
    with pytest.raises(DataError, match=r"window\.label: mean is for numbers"):
        labelled(tmp_path, "rest rest walk", "mean")


def test_classes_are_never_between_two(tmp_path: Path) -> None:
    text = "t,a,b,price\n0,0,0,rest\n2,2,0,run\n4,4,0,run\n"
    data = windows(tmp_path, text, {"every": 1, "gap_s": 2, "stride": 1},
                   spec=make_spec(SHAPED, target=CLASSES))  # fmt: skip
    assert data.arrays["x"][:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert data.arrays["target"].tolist() == [2, 2, 2]


# -- scales and faults ---------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["spec", "device", "none"])
def test_windows_are_those_of_an_npz_made_by_hand(tmp_path: Path, normalise: str) -> None:
    rng = np.random.default_rng(0)
    a = (1.7e9 + rng.normal(0, 3, 90)).round(2)
    csv(tmp_path, "a,b,price\n" + "".join(f"{v!r},{n},{n}\n" for n, v in enumerate(a.tolist())))
    spec = make_spec(TensorSpec("x", (3, 2), mean=(1.7e9, 40.0), std=(3.0, 20.0)))
    cfg = csv_config(window={"length": 3, "stride": 2, "columns": ["a", "b"]}, inputs={},
                     normalise=normalise)  # fmt: skip
    starts = np.arange(0, 88, 2)[:, None] + np.arange(3)
    np.savez(
        tmp_path / "data.npz",
        x=np.stack([a, np.arange(90.0)], 1)[starts],
        y=starts[:, -1].astype(float),
    )
    ours = load_dataset(cfg, spec, tmp_path)
    npz = load_dataset(config(normalise=normalise), spec, tmp_path)
    assert np.array_equal(ours.arrays["x"], npz.arrays["x"])
    assert np.array_equal(ours.arrays["target"], npz.arrays["target"])
    table = read_table(cfg, spec, tmp_path)
    assert table.arrays["x"][0, :, 0].tolist() == a[:3].tolist()


def test_a_fault_in_a_window_names_line_and_column(tmp_path: Path) -> None:
    csv(tmp_path, rows(list(range(6))).replace("4,4,40,4", "4,4,9e9,4"))
    spec = make_spec(TensorSpec("x", (3, 2), mean=(0.0, 0.0), std=(1.0, 1.0)))
    cfg = csv_config(window={"length": 3, "columns": ["a", "b"]}, inputs={})
    assert refusal(tmp_path, cfg, spec).startswith(
        "data.csv: line 7 (the window's last), column 'b': 9e+09 is no reading: it is +9e+09 "
        "standard deviations from the mean, limit 1e+06"
    )
    csv(tmp_path, rows(list(range(6))).replace("4,4,40,4", "4,4,1e30,4"))
    assert refusal(tmp_path, cfg, spec).startswith("data.csv: line 6, column 'b': 1e+30 is no")


def test_flat_inputs_take_windows_row_by_row(tmp_path: Path) -> None:
    data = windows(
        tmp_path, rows([0, 1, 2]), {}, timed=False, spec=make_spec(TensorSpec("x", (6,)))
    )
    assert data.arrays["x"].tolist() == [[0, 0, 1, 10, 2, 20]]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"length": 4}, "data.csv: windows of 4 readings do not fill the input x (shape (3, 2))"),
        ({"columns": ["a"]}, "data.csv: x needs 2 columns (2 a reading), 1 are configured: a"),
        ({"gap_s": 0.5}, "data.csv: no window of 3 readings: the longest run without a pause of"),
    ],
)
def test_windows_that_do_not_fit_say_why(
    tmp_path: Path, window: dict[str, Any], expected: str
) -> None:
    csv(tmp_path, rows(list(range(8))))
    cfg = csv_config(
        window={"length": 3, "columns": ["a", "b"], **window}, inputs={}, time={"column": "t"}
    )
    spec = make_spec(SHAPED)
    assert refusal(tmp_path, cfg, spec).startswith(expected)


def test_too_short_a_file_tells_how_far_readings_are_apart(tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match=r"has 1, readings are 60 s apart; see window\.length"):
        windows(tmp_path, rows([0, 60, 120, 180]), {"every": 1})


def test_more_windows_than_rows_are_allowed_are_refused(tmp_path: Path) -> None:
    text = rows([0, 1, 2, 3])
    with pytest.raises(DataError, match="more than 5 windows, that is rows, max_rows is 5"):
        windows(tmp_path, text, {"every": 0.1, "gap_s": 2, "stride": 1}, max_rows=5)
    with pytest.raises(DataError, match="more than 5 windows"):  # before 10^12 of them are made
        windows(tmp_path, rows([0, 10**9]), {"every": 0.001, "gap_s": 1e9}, max_rows=5)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"window": {"length": 0}}, "length must be 1 to 10^9, got 0"),
        ({"window": {"length": 3, "every": 1}}, "every and gap_s need times: name their column"),
        ({"window": {"length": 3, "ahead": 1, "label": "mean"}}, "ahead takes one reading's label"),
        ({"window": {"length": 3, "every": -1}}, "every must be 0 to 10^9, got -1.0"),
    ],
)
def test_settings_of_windows_that_cannot_work_are_refused(
    keys: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        csv_config(**keys)
    assert expected in str(caught.value)


def test_an_npz_holds_finished_windows() -> None:
    with pytest.raises(ConfigError, match=r"window is for \.csv and SQLite files"):
        config(window={"length": 3})
