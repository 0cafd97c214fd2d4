"""Tables, comparisons and the long table, by numbers that can be checked by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from fedge.errors import ConfigError
from fleet.experiments.compare import compare
from fleet.experiments.experiment import Experiment, Target, load_experiment
from fleet.experiments.long_table import write_csv
from fleet.experiments.results import Which
from fleet.experiments.show import notes, print_comparison, print_table
from fleet.experiments.table import as_document, summarise
from tests.unit.fleet.experiments.reports import experiment, report_document, write_report

TARGET = Target(metric="accuracy", value=0.75)


def test_a_row_has_mean_deviation_and_interval_over_seeds(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [0.6], 1: [0.7], 2: [0.8]}})
    (row,) = summarise(made, "accuracy", None)
    assert row.final is not None
    assert row.final.n == 3
    assert row.final.mean == pytest.approx(0.7)
    assert row.final.sd == pytest.approx(0.1)
    assert row.final.half_width == pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-5)
    assert row.to_target is None


def test_rounds_and_bytes_to_a_target_are_interpolated(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [0.5, 1.0], 1: [0.7, 0.8]}})
    (row,) = summarise(made, "accuracy", TARGET)
    assert row.to_target is not None
    assert (row.to_target.reached, row.to_target.censored) == (2, ())
    assert row.to_target.spent["rounds"].mean == pytest.approx(1.5)
    assert row.to_target.spent["rounds"].sd == pytest.approx(0.0)
    assert row.to_target.spent["bytes_up"].mean == pytest.approx(150)
    assert row.to_target.spent["bytes_both"].mean == pytest.approx(1650)


def test_runs_that_never_reach_the_target_are_counted_with_all_they_spent(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [0.5, 1.0], 1: [0.5, 0.5, 0.5, 0.5]}})
    (row,) = summarise(made, "accuracy", TARGET)
    assert row.to_target is not None
    assert (row.to_target.n, row.to_target.reached) == (2, 1)
    assert row.to_target.censored == (1,)
    assert row.to_target.spent["rounds"].mean == pytest.approx(1.5)
    assert row.to_target.at_least["rounds"] == pytest.approx((1.5 + 4) / 2)


def test_failed_runs_and_runs_without_the_metric_are_shown(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [0.5], 1: [None]}}, failed=[("a", 2)], target=TARGET)
    (row,) = summarise(made, "accuracy", None)
    assert (row.planned, row.failed, row.unmeasured) == (3, 1, (1,))
    console = Console(file=io.StringIO(), width=160)
    print_table(console, made, [row], "accuracy", None, 0.95)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "a: not measured with seed 1; not in its mean" in said
    assert "a seed 2 failed: no luck" in said


def of_best_and_last(folder: Path) -> Experiment:
    """An experiment whose runs hand out their first version."""
    made = experiment(
        folder, {"a": {0: [0.9, 0.5, None], 1: [0.8, 0.6]}, "b": {0: [0.7], 1: [0.7]}}
    )
    for seed, accuracy in ((0, 0.9), (1, 0.8)):
        path = folder / f"runs/a/{seed}/report.json"
        report = json.loads(path.read_text())
        report["final"] |= {"version": 1, "loss": 1 - accuracy, "metrics": {"accuracy": accuracy}}
        path.write_text(json.dumps(report))
    return load_experiment(made.folder)


def test_figures_are_of_the_best_version_or_of_the_last_round(tmp_path: Path) -> None:
    made = of_best_and_last(tmp_path)
    shown: dict[Which, float] = {"best": 0.85, "last": 0.55}
    for which, accuracy in shown.items():
        rows = summarise(made, "accuracy", None, which=which)
        assert rows[0].final is not None
        assert rows[0].final.mean == pytest.approx(accuracy)
        assert as_document(rows, "accuracy", None, which)["of"] == which
        (one,) = compare(made, "b", ["accuracy"], None, which=which)
        assert one.difference is not None
        assert one.difference.estimate.mean == pytest.approx(accuracy - 0.7)
        console = Console(file=io.StringIO(), width=160)
        print_table(console, made, rows, "accuracy", None, 0.95, which)
        assert isinstance(console.file, io.StringIO)
        said = console.file.getvalue()
        words = {"best": "accuracy of the best version", "last": "accuracy of the last round"}
        assert words[which] in said
        assert ("--of last shows the last round" in said) == (which == "best")


def test_the_long_table_marks_the_round_of_the_best_version(tmp_path: Path) -> None:
    write_csv(of_best_and_last(tmp_path), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == "a" and row["seed"] == "0"]
    assert [(row["round"], row["is_best"]) for row in rows] == [
        ("1", "True"),
        ("2", "False"),
        ("3", "False"),
    ]


def test_runs_without_a_result_are_one_line_for_each_case_and_reason(tmp_path: Path) -> None:
    failed = [("a", seed) for seed in (1, 2, *range(5, 16))] + [("b", 1)]
    made = experiment(tmp_path, {"a": {0: [0.5]}, "b": {0: [0.5]}}, failed=failed)
    assert notes(made, summarise(made, "accuracy", None)) == [
        "a seeds 1, 2, 5, 6, 7, 8, 9, 10, 11, 12 and 3 more failed: no luck",
        "b seed 1 failed: no luck",
    ]


def test_runs_of_different_code_are_told_apart(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [0.5], 1: [0.5]}})
    for seed, commit in ((0, "abc"), (1, "def")):
        run = {"kind": "event_exact", "commit": commit, "versions": {"fedge": "0.1.0"}}
        write_report(tmp_path / f"runs/a/{seed}", report_document([0.5], seed=seed, run=run))
    rows = summarise(made, "accuracy", None)
    assert rows[0].made_by == ("0.1.0 abc event_exact", "0.1.0 def event_exact")
    (note,) = notes(made, rows)
    assert note.startswith("not all runs were made in one way: 0.1.0 abc event_exact; 0.1.0 def")


def test_a_censored_mean_is_shown_as_a_lower_bound(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [0.5, 1.0], 1: [0.5, 0.5, 0.5, 0.5]}})
    console = Console(file=io.StringIO(), width=160)
    rows = summarise(made, "accuracy", TARGET)
    print_table(console, made, rows, "accuracy", TARGET, 0.95)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "1 of 2" in said
    assert "> 2.8" in said
    assert "lower bound of the mean" in said
    assert json.loads(json.dumps(as_document(rows, "accuracy", TARGET)))["cases"][0]["case"] == "a"


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    made = experiment(
        tmp_path,
        {"a": {0: [0.5, 1.0], 1: [0.6, 1.0]}, "b": {0: [0.6, 0.9], 1: [0.7, 0.8]}},
    )
    found = {one.figure: one for one in compare(made, "a", [], TARGET)}
    assert set(found) == {"loss", "accuracy", "rounds", "bytes_up", "bytes_down", "bytes_both"}
    accuracy = found["accuracy"].difference
    assert accuracy is not None
    assert accuracy.estimate.mean == pytest.approx(-0.15)
    assert accuracy.estimate.sd == pytest.approx(math.sqrt(0.005))
    assert accuracy.wins == 0
    rounds = found["rounds"].difference
    assert rounds is not None
    # a: 1.5 and 1.375; b: both 1.5: the second seed needs an eighth of a round more.
    assert rounds.estimate.mean == pytest.approx(0.0625)
    console = Console(file=io.StringIO(), width=160)
    print_comparison(console, list(found.values()), "a", TARGET, 0.95)


def test_pairs_that_never_reach_the_target_are_counted(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {0: [1.0], 1: [1.0]}, "b": {0: [1.0], 1: [0.1]}})
    (one,) = [one for one in compare(made, "a", ["accuracy"], TARGET) if one.figure == "rounds"]
    assert (one.pairs, one.censored) == (1, (1,))


def test_seeds_that_do_not_pair_are_refused_with_the_reason(tmp_path: Path) -> None:
    made = experiment(
        tmp_path, {"a": {0: [0.5], 1: [0.5]}, "b": {0: [0.5]}}, failed=[("b", 1)], target=TARGET
    )
    with pytest.raises(ConfigError, match=r"b has no result for seed 1 \(failed: no luck\); run"):
        compare(made, "a", [], None)
    with pytest.raises(ConfigError, match="b and a do not pair: b has no"):
        compare(made, "b", [], None)


def test_a_baseline_that_does_not_exist_or_is_alone_is_refused(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"alpha": {0: [0.5]}})
    with pytest.raises(ConfigError, match="no case 'alpa': did you mean alpha"):
        compare(made, "alpa", [], None)
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(made, "alpha", [], None)


def test_the_long_table_has_a_row_for_each_round_and_a_column_for_each_setting(
    tmp_path: Path,
) -> None:
    made = experiment(
        tmp_path / "x",
        {"a": {0: [0.5, None]}, "b": {0: [0.5]}},
        settings={
            "a": {"partition.alpha": 0.1, "algorithm": "fedavg"},
            "b": {"partition.alpha": None, "algorithm": {"name": "fedprox", "mu": 0.5}},
        },
    )
    assert write_csv(made, tmp_path / "deep/table.csv") == 3
    with (tmp_path / "deep/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "a", "b"]
    first, second, third = rows
    assert {"seed", "round", "version", "loss", "accuracy", "train_accuracy"} <= set(first)
    assert (first["partition.alpha"], third["partition.alpha"]) == ("0.1", "")
    assert third["algorithm"] == "fedprox-mu=0.5"
    assert (first["evaluated"], second["evaluated"]) == ("True", "False")
    assert (first["accuracy"], second["accuracy"]) == ("0.5", "")
    assert {int(row["bytes_up"]) for row in rows} == {100}
    assert {float(row["seconds"]) for row in rows} == {2.0}


def test_a_single_run_is_an_experiment_of_one_case(tmp_path: Path) -> None:
    path = write_report(tmp_path, report_document([0.5], seed=7))
    for place in (path, tmp_path):
        made = load_experiment(place)
        (row,) = summarise(made, made.default_metric(), None)
        assert (row.case, made.default_metric()) == ("tiny", "accuracy")
        assert row.final is not None
        assert (row.final.n, row.final.sd) == (1, None)
        assert write_csv(made, tmp_path / "t.csv") == 1


def test_a_folder_of_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither experiment\.json nor report\.json"):
        load_experiment(tmp_path)


def test_an_experiment_without_a_result_says_why(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"a": {}}, failed=[("a", 0)])
    with pytest.raises(ConfigError, match=r"none of 1 run is done; runs/a/0 failed: no luck"):
        made.any_report()
