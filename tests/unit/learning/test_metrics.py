"""Metrics as sums: what is added up on many devices says the same as all rows in one place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from learning.vector.metrics import (
    MetricSpec,
    Sums,
    absent_metrics,
    add_sums,
    fits,
    metric_matrices,
    metric_values,
)

ALL = (
    MetricSpec("mae"),
    MetricSpec("rmse", "root_mean"),
    MetricSpec("r2", "r2", (3,)),
    MetricSpec("auc", "auc", (2, 4)),
    MetricSpec("f1", "f1", (3, 2)),
    MetricSpec("precision", "precision", (3, 2)),
    MetricSpec("recall", "recall", (3, 2)),
    MetricSpec("confusion", "confusion", (2, 2)),
)


def sums_of(y: Any, p: Any) -> Sums:
    """Of rows with a target and a prediction of 0 or 1 each."""
    y, p = np.array(y, float), np.array(p, float)
    error = np.abs(y - p)
    counts = [[((y == t) & (p == s)).sum() for s in (0, 1)] for t in (0, 1)]
    (tn, fp), (fn, tp) = counts
    bins = [[0.0] * 4, [0.0] * 4]
    for true, said in zip(y, p, strict=True):
        bins[0 if true else 1][3 if said else 0] += 1
    per_class = tuple(map(float, (tn, tp, fn, fp, fp, fn)))
    return Sums(
        error.sum(),
        len(y),
        {
            "mae": float(error.sum()),
            "rmse": float((error**2).sum()),
            "r2": (float((error**2).sum()), float(y.sum()), float((y**2).sum())),
            "auc": (*bins[0], *bins[1]),
            **dict.fromkeys(("f1", "precision", "recall"), per_class),
            "confusion": tuple(map(float, (tn, fp, fn, tp))),
        },
    )


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    y, p = [0, 0, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0, 1]
    whole = sums_of(y, p)
    parts = add_sums([sums_of(y[:2], p[:2]), sums_of(y[2:3], p[2:3]), sums_of(y[3:], p[3:])])
    assert parts == whole
    assert fits(whole.metrics, ALL)


def test_the_values_are_those_of_the_textbook() -> None:
    values = metric_values(sums_of([0, 0, 1, 1], [0, 1, 1, 1]), ALL)
    assert values == {
        "loss": 0.25,
        "mae": 0.25,
        "rmse": 0.5,
        "r2": pytest.approx(0.0),  # 1 - 1 / 1
        "auc": 0.75,
        "f1": pytest.approx((2 / 3 + 4 / 5) / 2),
        "precision": pytest.approx((1 + 2 / 3) / 2),
        "recall": pytest.approx((0.5 + 1) / 2),
    }
    assert metric_matrices(sums_of([0, 0, 1, 1], [0, 1, 1, 1]), ALL) == {
        "confusion": [[1.0, 1.0], [0.0, 2.0]]
    }


def test_a_metric_that_rows_say_nothing_about_is_left_out() -> None:
    values = metric_values(sums_of([1, 1], [1, 1]), ALL)
    assert {"auc", "r2"}.isdisjoint(values)  # no negative row; no spread
    assert absent_metrics(sums_of([1, 1], [1, 1]), ALL) == {
        "auc": "the rows are of one class",
        "r2": "the targets are all alike, or differ by less than a millionth of their size",
    }
    assert absent_metrics(sums_of([0, 1], [1, 1]), ALL) == {}
    assert values["f1"] == 1.0  # of the class that occurs
    nothing = Sums(1.0, 1.0, {"f1": (0.0,) * 6})
    assert metric_values(nothing, ALL) == {"loss": 1.0}


def test_a_class_that_is_never_predicted_has_precision_0() -> None:
    only = (MetricSpec("precision", "precision", (3, 2)),)
    sums = Sums(0.0, 2.0, {"precision": (1.0, 0.0, 1.0, 0.0, 0.0, 1.0)})
    assert metric_values(sums, only)["precision"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (293.15, 0.3), (101_325.0, 30.0), (-4e6, 40.0), (1.7e9, 1e5)]
)
def test_r2_keeps_its_digits_where_the_mean_is_large_beside_the_spread(
    mean: float, std: float
) -> None:
    (r2,) = (spec for spec in ALL if spec.name == "r2")
    assert (r2.shape, r2.call_shape) == ((3,), (4,))
    rng = np.random.default_rng(4)
    parts, rows = [], []
    for count in (32, 32, 5, 1):  # calls of a program, which computes in float32
        y = rng.normal(mean, std, count).astype(np.float32)
        p = y + rng.normal(0, std / 2, count).astype(np.float32)
        w = rng.integers(1, 4, count).astype(np.float32)
        shifted = y - y[0]
        call = [w @ (y - p) ** 2, w @ shifted, w @ shifted**2, y[0]]
        assert r2.sums_of_call is not None
        sums = r2.sums_of_call(np.array(call, np.float32), float(w.sum()))
        parts.append(Sums(0.0, float(w.sum()), {"r2": tuple(sums.tolist())}))
        rows.append((y.astype(float), p.astype(float), w.astype(float)))
    y, p, w = map(np.concatenate, zip(*rows, strict=True))
    expected = 1 - w @ (y - p) ** 2 / (w @ (y - np.average(y, weights=w)) ** 2)
    assert metric_values(add_sums(parts), (r2,))["r2"] == pytest.approx(expected, abs=1e-3)


def test_r2_is_absent_where_float32_cannot_tell_the_targets_apart() -> None:
    (r2,) = (spec for spec in ALL if spec.name == "r2")
    y = np.float64(1.7e9) + np.array([0.0, 128.0, 256.0])  # neighbours in float32
    sums = Sums(0.0, 3.0, {"r2": (1.0, float(y.sum()), float(y @ y))})
    assert "r2" not in metric_values(sums, (r2,))
    assert "r2" in absent_metrics(sums, (r2,))


def test_what_is_no_finite_number_says_nothing() -> None:
    diverged = Sums(math.inf, 4.0, {"mae": math.nan, "r2": (1e100, 0.0, 1e-300)})
    assert metric_values(diverged, ALL) == {}
    assert absent_metrics(diverged, ALL)["mae"] == "not a finite number"
    split = Sums(4.0, 4.0, {"auc": (1e100, -1e100, 1e-300, 0.0, 1.0, 1.0, 1.0, 1.0)})
    assert metric_values(split, ALL) == {"loss": 1.0}
    odd = Sums(0.0, 1.0, {"confusion": (math.nan, 0.0, 0.0, 1.0)})
    assert metric_matrices(odd, ALL) == {}


@pytest.mark.parametrize("name", ["auc", "f1", "precision", "recall", "confusion"])
def test_a_weight_of_rows_below_0_does_not_fit(name: str) -> None:
    (spec,) = (spec for spec in ALL if spec.name == name)
    assert fits({name: (0.0,) * spec.size}, (spec,))
    assert not fits({name: (*(0.0,) * (spec.size - 1), -1e-9)}, (spec,))


def test_rounding_below_zero_is_no_imaginary_root() -> None:
    sums = Sums(0.0, 1.0, {"rmse": -1e-12})
    assert metric_values(sums, (MetricSpec("rmse", "root_mean"),))["rmse"] == 0.0


def test_nothing_adds_up_to_nothing() -> None:
    assert add_sums([]) == Sums(0.0, 0.0, {})


@pytest.mark.parametrize(("one", "other"), [(1.0, (1.0,)), ((1.0,), 1.0), ((1.0,) * 2, (1.0,) * 3)])
def test_sums_of_different_shapes_do_not_add(one: Any, other: Any) -> None:
    with pytest.raises(TypeError, match="mae: sums of different shapes"):
        add_sums([Sums(0.0, 1.0, {"mae": one}), Sums(0.0, 1.0, {"mae": other})])


@pytest.mark.parametrize(
    "totals",
    [
        {},
        {"mae": 1.0, "auc": (1.0,) * 7},
        {"mae": (1.0,), "auc": (1.0,) * 8},
        {"mae": 1.0, "auc": 1.0},
        {"mae": 1.0, "auc": (1.0,) * 8, "more": 1.0},
    ],
)
def test_sums_of_other_metrics_do_not_fit(totals: Any) -> None:
    assert not fits(totals, (ALL[0], ALL[3]))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("mean", (2,)),
        ("r2", ()),
        ("auc", (2, 1)),
        ("auc", (3, 9)),
        ("f1", (2, 3)),
        ("confusion", (2, 3)),
    ],
)
def test_impossible_metrics_are_refused(kind: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"metric 'm' of kind {kind} has shape"):
        MetricSpec("m", kind, shape)


def test_a_metric_may_have_ten_thousand_numbers() -> None:
    MetricSpec("m", "confusion", (100, 100))
    with pytest.raises(ValueError, match=r"'m' has 10,201 numbers \(101, 101\), limit 10,000"):
        MetricSpec("m", "confusion", (101, 101))


def test_names_are_plain_identifiers() -> None:
    with pytest.raises(ValueError, match="plain identifier"):
        MetricSpec("top 5")
    assert math.isclose(MetricSpec("m", "confusion", (100, 100)).size, 10_000)
