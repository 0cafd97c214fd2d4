"""Reports read again: history, curves, crossings, agents."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.records.records import new_record
from fedge.errors import ConfigError
from fleet.experiments.curves import Curve
from fleet.experiments.hooks.follow import figures
from fleet.experiments.results import Report, load_report
from tests.unit.fleet.experiments.reports import report_document, round_document, write_report


def report(*values: float | None) -> Report:
    return Report(report_document(values))


def test_a_curve_has_what_was_spent_by_each_round() -> None:
    curve = report(0.5, 0.7).curve("accuracy")
    assert curve.rounds.tolist() == [1, 2]
    assert curve.values.tolist() == [0.5, 0.7]
    assert curve.bytes_up.tolist() == [100, 200]
    assert curve.bytes_both.tolist() == [1100, 2200]
    assert curve.seconds.tolist() == [2, 4]
    assert not curve.falls
    assert report(0.5).curve("loss").falls


def test_a_target_is_crossed_between_two_rounds() -> None:
    crossing = report(0.5, 0.7, 0.9).crossing("accuracy", 0.75)
    assert crossing is not None
    assert crossing.rounds == pytest.approx(2.25)
    assert crossing.bytes_up == pytest.approx(225)
    assert crossing.bytes_both == pytest.approx(2475)
    assert crossing.seconds == pytest.approx(4.5)


def test_the_curve_is_made_monotone_before_it_is_crossed() -> None:
    found = report(0.5, 0.8, 0.6, 0.9)
    assert found.curve("accuracy").monotone().values.tolist() == [0.5, 0.8, 0.8, 0.9]
    # From the best so far, .8 in rounds 2 and 3, to .9 in round 4: not from the .6 of round 3.
    assert found.rounds_to("accuracy", 0.85) == pytest.approx(3.5)
    assert found.rounds_to("accuracy", 0.8) == pytest.approx(2.0)


def test_a_falling_metric_is_crossed_from_above() -> None:
    assert report(0.5, 0.7).rounds_to("loss", 0.4) == pytest.approx(1.5)


def test_the_first_measured_round_counts_whole() -> None:
    assert report(0.9).rounds_to("accuracy", 0.5) == 1.0
    assert report(None, None, 0.9).rounds_to("accuracy", 0.5) == 3.0


def test_a_target_that_is_never_reached_is_none() -> None:
    assert report(0.5, 0.7).rounds_to("accuracy", 0.71) is None


def test_a_value_that_is_not_a_number_never_is_the_best() -> None:
    values = np.array([math.nan, 0.5, math.nan, 0.9])
    steps = np.arange(1.0, 5.0)
    curve = Curve("accuracy", False, steps, values, steps, steps, steps)
    assert curve.monotone().values.tolist()[1:] == [0.5, 0.5, 0.9]
    crossing = curve.crossing(0.5)
    assert crossing is not None
    assert crossing.rounds == 2.0


def test_rounds_without_evaluation_are_no_points_and_their_bytes_count() -> None:
    curve = report(0.5, None, 0.7).curve("accuracy")
    assert curve.rounds.tolist() == [1, 3]
    assert curve.bytes_up.tolist() == [100, 300]
    assert report(0.5, None, 0.7).curve("loss").values.tolist() == pytest.approx([0.5, 0.3])


def test_without_any_evaluation_there_are_values_of_training_by_their_name_alone() -> None:
    made = [round_document(n, None, metrics={"accuracy": 0.3, "central_mae": n}) for n in (1, 2)]
    found = Report(report_document([], made))
    assert found.metrics == ["central_mae", "train_loss", "train_accuracy"]
    assert found.curve("train_loss").values.tolist() == [0.9, 0.9]
    assert found.curve("central_mae").values.tolist() == [1, 2]
    for name in ("loss", "accuracy"):
        with pytest.raises(ConfigError, match=f"{name}': no round measured on held-out rows; "):
            found.curve(name)
        assert found.agents(name) == {}
        assert found.final_value(name) is None
    assert found.agents("train_accuracy") == {"pi-1": 0.75, "pi-2": 0.5}
    assert found.final_value("train_accuracy") == 0.3
    assert {**found.agent_rows[0]}.keys() == {
        "agent", "unseen", "train_loss", "train_accuracy", "num_examples",
    }  # fmt: skip
    assert [row for row in found.history if {"loss", "accuracy"} & row.keys()] == []
    assert found.measures == ["train_loss", "train_accuracy", "central_mae"]


def test_rounds_without_evaluation_have_no_measured_figures() -> None:
    made = [
        round_document(1, None, metrics={"accuracy": 0.3, "central_mae": 5}),
        round_document(2, 0.5),
        round_document(3, None, metrics={"accuracy": 0.4}),
    ]
    found = Report(report_document([], made))
    shown = [(row["loss"], row["accuracy"], row["train_loss"]) for row in found.history]
    assert shown == [(None, None, 0.9), (0.5, 0.5, 0.9), (None, None, 0.9)]
    assert found.history[0]["central_mae"] == 5
    assert found.curve("train_accuracy").rounds.tolist() == [1, 2, 3]
    # The version that was handed out is that of round 3, which nobody measured.
    assert found.final.keys() & {"loss", "accuracy"} == set()
    assert found.final["train_accuracy"] == 0.4
    assert found.final_value("accuracy") is None


def test_a_hook_is_told_of_training_by_its_name_alone() -> None:
    record = msgspec.structs.replace(
        new_record(3, 2, 4),
        status="committed",
        loss=0.2,
        metrics={"mae": 0.3, "central_mae": 0.4},
        train_loss=0.2,
        train_metrics={"mae": 0.3},
        reported=4,
    )
    told = {"train_loss": 0.2, "train_mae": 0.3, "central_mae": 0.4, "reported": 4.0}
    spent = {"bytes_up": 0.0, "bytes_down": 0.0, "seconds": 0.0}
    assert figures(record) == told | spent
    measured = msgspec.structs.replace(record, evaluated=True)
    assert figures(measured) == told | spent | {"loss": 0.2, "mae": 0.3}


def test_an_abandoned_round_is_no_point_and_its_bytes_count() -> None:
    lost = round_document(1, None, status="abandoned", version=0, loss=None)
    curve = Report(report_document([], [lost, round_document(2, 0.5)])).curve("accuracy")
    assert curve.rounds.tolist() == [2]
    assert curve.bytes_up.tolist() == [200]


def test_central_metrics_are_points_in_every_round() -> None:
    rounds = [
        round_document(1, None, metrics={"central_accuracy": 0.2}),
        round_document(2, 0.5, metrics={"central_accuracy": 0.4, "accuracy": 0.5}),
    ]
    curve = Report(report_document([], rounds)).curve("central_accuracy")
    assert curve.values.tolist() == [0.2, 0.4]


def test_an_unknown_metric_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'acuracy': did you mean accuracy\? it has loss, acc"):
        report(0.5).curve("acuracy")


def test_of_an_abbreviation_the_metric_that_begins_with_it_is_proposed() -> None:
    measured = round_document(1, 0.5, metrics={"auc": 0.1, "accuracy": 0.5})
    with pytest.raises(ConfigError, match=r"did you mean accuracy\?"):
        Report(report_document([], [measured])).curve("acc")


def test_history_is_one_flat_dict_a_round() -> None:
    first, second = report(0.5, None).history
    assert first["round"] == 1
    assert first["accuracy"] == 0.5
    assert first["train_accuracy"] == 0.1
    assert first["bytes_down"] == 1000
    assert not second["evaluated"]
    assert all(not isinstance(value, dict | list) for value in first.values())


def test_final_agents_and_matrices_are_of_the_version_that_was_handed_out() -> None:
    document = report_document([0.9, 0.5])
    document["final"] |= {"version": 1, "loss": 0.1, "metrics": {"accuracy": 0.9}}
    document["rounds"][1]["agents"] = {}
    found = Report(document)
    assert found.final["accuracy"] == 0.9
    assert found.final["bytes_up"] == 200
    assert found.agents("accuracy") == {"pi-1": 0.75, "pi-2": 0.5}
    assert found.agents("nothing") == {}
    assert found.matrices == {"confusion": [[3.0, 1.0], [0.0, 4.0]]}


def test_a_report_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    path = write_report(tmp_path / "run", report_document([0.5]))
    assert load_report(path).final["accuracy"] == 0.5
    assert load_report(str(tmp_path / "run")).scenario == "tiny"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"scenario": 1}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ConfigError, match="not a report"):
        load_report(tmp_path)


def test_a_report_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name a report\.json"):
        load_report(tmp_path / "nowhere")
