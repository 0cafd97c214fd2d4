"""The statistics of a federation in words, in JSON, and on disk."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from coordinator.machine.progress import Progress
from coordinator.records.records import RoundRecord, new_record
from coordinator.report import (
    answer_lines,
    decline_lines,
    round_line,
    status_document,
    status_text,
)
from coordinator.result import AnswerResult, TrainedModel, make_result
from coordinator.statistics_table import answer_document, statistics_lines
from coordinator.storage.store import Store
from fedge.errors import StoreError
from learning.algorithms.algorithm import ServerState
from learning.phases.statistics import Moments, moments
from tests.unit.coordinator.machine.coordinator_stage import PACKAGE, config

COLUMNS = {
    "income": moments(np.array([1.0, 2.0, 3.0, 6.0]), None, (2.0, 4.0)),
    "rooms": moments(np.array([1500.0, np.nan, 2500.0, np.nan]), None, ()),
    "empty": moments(np.full(4, np.nan), None, ()),
}


def record(columns: Any = None, **changes: Any) -> RoundRecord:
    facts = {
        "status": "answered",
        "reported": 2,
        "declined": {"pi-9": "not_allowed"},
        "details": {"not_allowed": "pi-9: set \x1b[2J allow"},
        "statistics": COLUMNS if columns is None else columns,
        "bytes_up": 1500,
        "bytes_down": 2_000_000,
        "seconds": 1.5,
    }
    return msgspec.structs.replace(new_record(1, 0, 3), **(facts | changes))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = Store(tmp_path)
    store.adopt("f", PACKAGE)
    store.begin(PACKAGE.initial, ServerState())
    yield store
    store.close()


def test_the_table_has_a_row_for_each_column_and_a_block_for_each_histogram() -> None:
    assert statistics_lines(COLUMNS) == [
        "column  count  missing  mean      std   min   max",
        "income      4        0     3  1.87083     1     6",
        "rooms       2        2  2000      500  1500  2500",
        "empty       0        4     -        -     -     -",
        "",
        "income       numbers",
        "below 2            1",
        "2 to 4             2",
        "4 and above        1",
    ]


def test_weights_have_a_column_of_their_own_where_rows_have_weights() -> None:
    weighted = moments(np.array([1.0, 5.0]), np.array([3.0, 1.0]), (2.0,))
    assert statistics_lines({"x": weighted}) == [
        "column  count  missing  weight  mean      std  min  max",
        "x           2        0       4     2  1.73205    1    5",
        "",
        "x            weight",
        "below 2           3",
        "2 and above       1",
    ]


def test_names_cannot_command_a_terminal_nor_fill_it() -> None:
    column = Moments(count=1, missing=0, weight=1, mean=1, m2=0, minimum=1, maximum=1)
    _, first, second = statistics_lines({"\x1b[2J": column, "x" * 500: column})
    assert first.startswith("\\x1b[2J ")
    assert second.startswith("x" * 39 + "…  ")


def test_the_answer_tells_who_declined_and_why() -> None:
    assert answer_lines(record())[:3] == [
        "2 of 3 agents answered",
        "1 declined (not_allowed): pi-9: set \\x1b[2J allow",
        "",
    ]


def test_many_that_declined_are_named_up_to_ten() -> None:
    names = [f"pi-{n:02d}" for n in range(12)]
    many = msgspec.structs.replace(
        record(),
        declined=dict.fromkeys(names, "not_allowed") | {"old": "phase"},
        details={"not_allowed": "pi-03: statistics.allow is false"},
    )
    assert decline_lines(many) == [
        f"12 declined (not_allowed): {', '.join(names[:10])} and 2 more; "
        "pi-03: statistics.allow is false",
        "1 declined (phase): old",
    ]


def test_a_round_of_statistics_is_one_line() -> None:
    assert round_line(record()) == (
        "round 1 · statistics of 3 columns · 2 of 3 reported · declined: 1 not_allowed"
        " · 1.5 kB up, 2.0 MB down · 1.50 s"
    )


def test_the_document_has_every_moment_and_null_where_there_is_none() -> None:
    document = answer_document(record())
    assert document["declined"] == {"pi-9": "not_allowed"}
    assert (document["asked"], document["reported"]) == (3, 2)
    assert document["columns"]["income"] == {
        "count": 4,
        "missing": 0,
        "weight": 4.0,
        "sum": 12.0,
        "mean": 3.0,
        "variance": 3.5,
        "std": pytest.approx(3.5**0.5),
        "min": 1.0,
        "max": 6.0,
        "histogram": {"edges": [2.0, 4.0], "weights": [1.0, 2.0, 1.0]},
    }
    empty = document["columns"]["empty"]
    assert (empty["count"], empty["missing"], empty["sum"]) == (0, 4, 0.0)
    assert {empty[name] for name in ("mean", "variance", "std", "min", "max")} == {None}


def test_a_record_with_statistics_comes_back_from_the_store(store: Store) -> None:
    store.save_round(record())
    assert store.rounds() == [record()]
    assert store.history()[0].statistics == {}


def test_the_status_shows_the_table(store: Store) -> None:
    settings = config(task="statistics")
    assert "income" not in status_text(store, settings)
    store.save_round(record())
    text = status_text(store, settings)
    assert text.splitlines()[0] == "federation f · model house_price · not running"
    assert "\n".join(statistics_lines(COLUMNS)) in text
    assert "1 declined (not_allowed): pi-9" in text
    assert status_document(store)["rounds"][0]["statistics"]["rooms"]["missing"] == 2


def result(store: Store, tmp_path: Path, version: int = 1, **changes: Any) -> Any:
    progress = Progress(version, PACKAGE.initial, ServerState())
    return make_result(config(**changes), tmp_path, PACKAGE, progress, store)


def test_a_task_has_its_result(store: Store, tmp_path: Path) -> None:
    trained = result(store, tmp_path)
    assert isinstance(trained, TrainedModel)
    assert trained.text() == f"trained model: {tmp_path / 'model'}"
    begun = result(store, tmp_path, version=0).text()
    assert begun == f"nothing was trained: {tmp_path / 'model'} holds the model as it began"
    for task in ("statistics", {"name": "statistics", "weighted": True}):
        assert isinstance(result(store, tmp_path, task=task), AnswerResult)


def test_the_file_has_the_latest_table_and_is_the_owner_s(store: Store, tmp_path: Path) -> None:
    found = result(store, tmp_path, task="statistics")
    found.save()
    assert not (tmp_path / "statistics.json").exists()
    assert found.text() == "no statistics yet: no round was answered"
    store.save_round(msgspec.structs.replace(record({}), status="abandoned"))
    store.save_round(msgspec.structs.replace(record(), round_id=2))
    found.save()
    path = tmp_path / "statistics.json"
    assert json.loads(path.read_text())["columns"]["rooms"]["mean"] == 2000
    assert json.loads(path.read_text())["round_id"] == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found.text().splitlines()[-1] == f"statistics: {path}"


def test_a_file_that_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    store.save_round(record())
    found = result(store, tmp_path / "gone", task="statistics")
    with pytest.raises(StoreError, match=r"statistics.json is not written: .*mend the disk"):
        found.save()
