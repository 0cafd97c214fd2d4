"""Which rows are held out, and what is said of targets that differ in both parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.dataset import LocalDataset, load_dataset
from edge_agent.data.split import joined_codes, split_rows
from edge_agent.data.targets import class_counts, row_classes, target_findings
from edge_agent.doctor.data_checks import part_lines
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import (
    CLASSES,
    config,
    csv,
    csv_config,
    make_spec,
    npz,
    refusal,
)

ACTIVITY = TensorSpec("target", (), "int32", classes=("sit", "stand", "stairs", "walk"))
SPEC = make_spec(target=ACTIVITY)


def sorted_by_label(folder: Path) -> Path:
    """Five rows of each activity, one activity after the other."""
    rows = [f"0.{row},0.{row},{name}\n" for name in ACTIVITY.classes for row in range(5)]
    return csv(folder, "".join(["a,b,activity\n", *rows]))


def activities(base: Path, **keys: Any) -> LocalDataset:
    keys = {"target": {"column": "activity"}, "test_fraction": 0.25, **keys}
    return load_dataset(csv_config(**keys), SPEC, base)


def warnings(data: LocalDataset) -> list[str]:
    found = target_findings(data.arrays, SPEC, data.num_train, data.split)
    return [str(odd) for odd in found]


def counts(data: LocalDataset) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found = class_counts(data.arrays, SPEC, ACTIVITY, data.num_train)
    assert found is not None
    return found.learn, found.measure


def test_later_rows_of_each_group_are_held_out_even_when_groups_interleave() -> None:
    group = np.array([7, 3, 7, 3, 7, 3, 7, 7])
    # 5 * .34 = 1.7 -> 2 of group 7; 1.02 -> 1 of group 3
    train, test = split_rows("time", group, np.arange(8), 0.34)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert test.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"),
    [(10, 0, 0), (10, 0.2, 2), (10, 1, 10), (1, 0.2, 0), (1, 0.9, 0), (1, 1, 1), (3, 0.99, 2)],
)
def test_a_fraction_below_one_leaves_something_to_train_on(
    rows: int, fraction: float, held_out: int
) -> None:
    train, test = split_rows("time", np.zeros(rows), np.arange(rows), fraction)
    assert test.tolist() == list(range(rows))[rows - held_out :]
    assert train.tolist() == list(range(rows))[: rows - held_out]


def test_rows_sorted_by_label_are_named_with_what_to_do(tmp_path: Path) -> None:
    data = activities(sorted_by_label(tmp_path))
    assert counts(data) == ((5, 5, 5, 0), (0, 0, 0, 5))
    assert warnings(data) == [
        "target: class walk is held out and never learned (5 of the 5 rows held out): are the rows "
        "sorted by it? Then add the label's column to data.group, or set data.split: stratified"
    ]
    assert [*part_lines(data, SPEC)][:2] == [
        "learn    15 rows; target: sit 5, stand 5, stairs 5",
        "measure  5 rows; target: walk 5",
    ]


def test_what_the_warning_says_to_do_mends_it(tmp_path: Path) -> None:
    sorted_by_label(tmp_path)
    for keys in ({"group": "activity"}, {"group": ["activity"]}, {"split": "stratified"}):
        data = activities(tmp_path, **keys)
        assert counts(data) == ((4, 4, 4, 4), (1, 1, 1, 1))  # 5 * .25 = 1.25 -> 1
        assert warnings(data) == []


def test_the_leak_of_a_split_that_does_not_follow_time_is_said(tmp_path: Path) -> None:
    data = activities(sorted_by_label(tmp_path), split="stratified")
    said = [line for line in part_lines(data, SPEC) if line.startswith("split")]
    assert len(said) == 1
    assert "rows that are alike" in said[0]
    in_time = activities(tmp_path)
    assert not [line for line in part_lines(in_time, SPEC) if line.startswith("split")]


def test_groups_of_several_columns_are_split_each_on_its_own(tmp_path: Path) -> None:
    rows = "1,1,1,ann,a\n" * 2 + "1,1,2,ann,b\n" * 2 + "1,1,3,bob,a\n" * 2
    csv(tmp_path, "a,b,price,who,day\n" + rows)
    data = load_dataset(csv_config(group=["who", "day"], test_fraction=0.5), make_spec(), tmp_path)
    assert data.rows[data.test].tolist() == [1, 3, 5]
    npz(
        tmp_path,
        x=np.ones((6, 2)),
        y=np.ones(6),
        who=np.array(list("aaaabb")),
        day=[1, 1, 2, 2, 1, 1],
    )
    data = load_dataset(config(group=["who", "day"], test_fraction=0.5), make_spec(), tmp_path)
    assert data.rows[data.test].tolist() == [1, 3, 5]


def test_joined_codes_are_equal_where_all_columns_are() -> None:
    codes = joined_codes([np.array([2, 2, 1, 2]), np.array(["b", "a", "a", "b"])])
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 3


def test_an_empty_list_of_groups_is_refused() -> None:
    with pytest.raises(Exception, match="group is an empty list"):
        config(group=[])


def test_a_random_split_holds_out_its_share_and_the_same_rows_each_time() -> None:
    rows = np.arange(400)
    train, test = split_rows("random", np.zeros(400), rows, 0.25)
    assert (len(train), len(test)) == (300, 100)
    assert sorted([*train, *test]) == rows.tolist()
    assert 20 <= sum(test < 200) <= 80  # not the latest rows
    again = split_rows("random", np.zeros(400), rows, 0.25)[1]
    assert again.tolist() == test.tolist()


def test_rows_that_come_later_leave_most_others_on_their_side() -> None:
    before = set(split_rows("random", np.zeros(1000), np.arange(1000), 0.2)[1].tolist())
    after = set(split_rows("random", np.zeros(1100), np.arange(1100), 0.2)[1].tolist())
    assert len(before - after) <= 20


def test_stratified_takes_its_share_of_each_class_in_each_group() -> None:
    group, classes = np.repeat([0, 1], 40), np.tile([0, 0, 0, 1], 20)
    _, test = split_rows("stratified", group, np.arange(80), 0.2, classes)
    found = [int(((group == g) & (classes == c))[test].sum()) for g in (0, 1) for c in (0, 1)]
    assert found == [6, 2, 6, 2]


def test_stratified_needs_classes(tmp_path: Path) -> None:
    npz(tmp_path, x=np.ones((4, 2)), y=np.arange(4))
    line = refusal(tmp_path, config(split="stratified"))
    assert "split: stratified needs a target that is one class a row" in line


def test_one_hot_targets_have_classes_too() -> None:
    target = TensorSpec("target", (3,), classes=("sit", "stand", "walk"))
    spec, hot = make_spec(target=target), np.eye(3, dtype=np.float32)[[0, 0, 2]]
    found = class_counts({"target": hot}, spec, target, 2)
    assert found is not None
    assert (found.learn, found.measure) == ((2, 0, 0), (0, 0, 1))
    classes = row_classes({"target": hot}, spec, np.array([2, 0]))
    assert classes is not None
    assert classes.tolist() == [2, 0]


def test_a_class_never_held_out_is_named_when_rows_of_it_were_due() -> None:
    labels = np.array([0] * 80 + [1] * 80 + [0] * 40, np.int32)
    (odd,) = target_findings({"target": labels}, make_spec(target=CLASSES), 160, "time")
    assert str(odd).startswith(
        "target: class walk is learned and never held out: are the rows sorted"
    )
    rare = np.array([1] * 2 + [0] * 158 + [0] * 40, np.int32)
    assert [*target_findings({"target": rare}, make_spec(target=CLASSES), 160, "time")] == []


@pytest.mark.parametrize(
    ("learn", "measure"),
    [
        ([6, 5, 0], [2, 1, 1]),  # one row of a rare class, the latest by chance
        ([40, 2, 3], [4, 4, 3]),  # few rows held out: other shares by chance
        ([30, 30, 6], [10, 10, 0]),
    ],
)
def test_what_chance_does_to_few_rows_is_not_told(learn: list[int], measure: list[int]) -> None:
    labels = np.repeat([0, 1, 2, 0, 1, 2], [*learn, *measure]).astype(np.int32)
    found = target_findings({"target": labels}, make_spec(target=CLASSES), sum(learn), "time")
    assert [*found] == []


@pytest.mark.parametrize(
    ("learn", "measure"), [([4, 4, 0], [0, 0, 2]), ([400, 300, 0], [80, 60, 6])]
)
def test_a_class_that_is_only_held_out_is_told(learn: list[int], measure: list[int]) -> None:
    labels = np.repeat([0, 1, 2, 0, 1, 2], [*learn, *measure]).astype(np.int32)
    (odd,) = target_findings({"target": labels}, make_spec(target=CLASSES), sum(learn), "time")
    assert odd.found.startswith("class run is held out and never learned")


def test_other_shares_of_the_same_classes_are_named() -> None:
    labels = np.array([0] * 90 + [1] * 10 + [0] * 4 + [1] * 36, np.int32)
    (odd,) = target_findings({"target": labels}, make_spec(target=CLASSES), 100, "time")
    assert "class rest is 90% of the rows to learn from and 10% of those held out" in str(odd)


def test_targets_sorted_by_size_are_named_and_others_are_not() -> None:
    rising = np.arange(100, dtype=np.float32)
    (odd,) = target_findings({"target": rising}, make_spec(), 60, "time")
    # 0..59: mean 29.5, std 17.3; 60..99: mean 79.5, std 11.5
    assert "29.5 ± 17 in the rows to learn from, 79.5 ± 12 in those held out" in str(odd)
    assert "data.split: random" in str(odd)
    mixed = np.random.default_rng(0).permutation(rising)
    assert [*target_findings({"target": mixed}, make_spec(), 80, "time")] == []


def test_without_rows_on_either_side_there_is_nothing_to_compare() -> None:
    labels = np.array([0, 1], np.int32)
    for learned in (0, 2):
        assert [*target_findings({"target": labels}, SPEC, learned, "time")] == []
