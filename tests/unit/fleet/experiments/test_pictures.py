"""Pictures: what they show, read from the figure; and files of each kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError
from fleet.experiments.experiment import Experiment, Target, load_experiment
from fleet.experiments.pictures.agents import ecdf
from fleet.experiments.pictures.confusion import in_percent
from fleet.experiments.pictures.curves import mean_curve
from fleet.experiments.pictures.draw import KINDS, draw, make_view, write_picture
from fleet.experiments.results import Report
from tests.unit.fleet.experiments.reports import experiment, report_document, write_report

pytest.importorskip("matplotlib")
TARGET = Target(metric="accuracy", value=0.75)


def two_cases(folder: Path) -> Experiment:
    values = {"a": {0: [0.5, 0.7], 1: [0.7, 0.9]}, "b": {0: [0.1, 0.2], 1: [0.1, 0.2]}}
    return experiment(folder, values, target=TARGET)  # type: ignore[arg-type]


def curves(*values: list[float | None]) -> list[Any]:
    return [Report(report_document(one)).curve("accuracy") for one in values]


def test_a_mean_curve_has_mean_deviation_and_interval_of_each_round() -> None:
    found = mean_curve(curves([0.5, 0.7], [0.7, 0.9]))
    assert found.mean.tolist() == pytest.approx([0.6, 0.8])
    assert found.sd.tolist() == pytest.approx([np.sqrt(0.02)] * 2)
    assert found.spent.tolist() == [1100, 2200]
    assert found.half_width("sd").tolist() == pytest.approx([np.sqrt(0.02)] * 2)
    assert found.half_width("ci").tolist() == pytest.approx([12.7062 * 0.1] * 2, abs=1e-4)
    assert not found.half_width("none").any()


def test_a_mean_curve_ends_with_its_shortest_run() -> None:
    found = mean_curve(curves([0.5, 0.7, 0.9], [0.7, None, 0.7, 0.9]))
    assert found.rounds.tolist() == [1, 3]
    assert found.mean.tolist() == pytest.approx([0.6, 0.8])


def test_curves_show_each_case_with_its_band_its_target_and_a_legend(tmp_path: Path) -> None:
    made = two_cases(tmp_path)
    (axes,) = draw(make_view(made, "curves"), "curves").axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [line.get_label() for line in lines][:2] == ["a", "b"]
    assert list(lines[0].get_ydata()) == pytest.approx([0.6, 0.8])
    assert len(axes.collections) == 1  # b's runs are equal: no band
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "accuracy")
    assert axes.get_title(loc="left") == "tiny · 2 seeds · mean ± sd"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["target 0.75"]


@pytest.mark.parametrize("cases", [1, 2, 8])
def test_the_target_s_value_stands_beside_the_curves_and_the_legend(
    tmp_path: Path, cases: int
) -> None:
    values = {f"case-{n}": {0: [0.5, 0.75, 0.75 + n / 100]} for n in range(cases)}
    made = experiment(tmp_path, values, target=TARGET)  # type: ignore[arg-type]
    figure = draw(make_view(made, "curves"), "curves")
    figure.canvas.draw()
    (axes,) = figure.axes
    (label,) = axes.texts
    place = label.get_window_extent()
    assert place.x0 >= axes.get_window_extent().x1
    assert place.x1 <= figure.bbox.x1
    if legend := axes.get_legend():
        assert not legend.get_window_extent().overlaps(place)


def test_bytes_are_the_x_axis_in_the_direction_asked_for(tmp_path: Path) -> None:
    made = two_cases(tmp_path)
    view = make_view(made, "bytes", cases=["a"], direction="up")
    (axes,) = draw(view, "bytes").axes
    assert list(axes.lines[0].get_xdata()) == [100, 200]
    assert axes.get_xlabel().startswith("bytes up,")
    assert axes.get_legend() is None


def test_agents_show_the_distribution_of_all_seeds(tmp_path: Path) -> None:
    left, right = draw(make_view(two_cases(tmp_path), "agents"), "agents").axes
    assert sorted(set(left.lines[0].get_xdata())) == [0.5, 0.75]
    assert left.lines[0].get_ydata()[-1] == 1.0
    assert [label.get_text() for label in right.get_yticklabels()] == ["a", "b"]


def test_the_distribution_function_counts_values_at_or_below() -> None:
    x, share = ecdf(np.array([3.0, 1.0, 2.0, 2.0]))
    assert x.tolist() == [1, 2, 2, 3]
    assert share.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_confusion_matrices_are_summed_over_seeds_in_percent_of_the_true_class(
    tmp_path: Path,
) -> None:
    figure = draw(make_view(two_cases(tmp_path), "confusion"), "confusion")
    shown = figure.axes[0]
    assert np.asarray(shown.images[0].get_array()).tolist() == [[75.0, 25.0], [0.0, 100.0]]
    assert [label.get_text() for label in shown.get_yticklabels()] == ["cat", "dog"]
    assert (shown.get_xlabel(), shown.get_ylabel()) == ("predicted class", "true class")


def test_a_class_without_rows_is_zero_percent() -> None:
    assert in_percent(np.array([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[25, 75], [0, 0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_every_kind_is_written_from_an_experiment_and_from_a_report(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    start = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    two_cases(tmp_path / "exp")
    write_report(tmp_path / "run", report_document([0.5, 0.6]))
    for folder in ("exp", "run"):
        path = tmp_path / f"pictures/{folder}{suffix}"
        write_picture(make_view(load_experiment(tmp_path / folder), kind), kind, path)
        assert path.read_bytes().startswith(start)


def test_the_same_results_make_the_same_picture(tmp_path: Path) -> None:
    made = two_cases(tmp_path)
    for name in ("one.svg", "two.svg"):
        write_picture(make_view(made, "agents"), "agents", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    made = two_cases(tmp_path)
    with pytest.raises(ConfigError, match=r"picture is a file of \.png, \.svg, \.pdf"):
        write_picture(make_view(made, "curves"), "curves", tmp_path / "x.jpg")
    with pytest.raises(ConfigError, match="no round has the metric 'auc'"):
        draw(make_view(made, "curves", "auc"), "curves")
    with pytest.raises(ConfigError, match="no confusion matrix 'other' to draw; there are: conf"):
        draw(make_view(made, "confusion", "other"), "confusion")
    with pytest.raises(ConfigError, match="no case 'c'"):
        make_view(made, "curves", cases=["c"])
    document = report_document([0.5])
    document["final"]["matrices"] = {}
    write_report(tmp_path / "run", document)
    with pytest.raises(ConfigError, match="no metric of kind confusion"):
        make_view(load_experiment(tmp_path / "run"), "confusion")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path) -> None:
    write_report(tmp_path, report_document([0.5]))
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from fedge.command import main\n"
        f"main(args=['experiment', 'plot', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: matplotlib is missing: pip install 'fedge[plot]'\n"


def test_confusion_matrices_of_different_models_in_one_case_are_refused(tmp_path: Path) -> None:
    made = two_cases(tmp_path)
    run = made.runs(made.cases[0])[1]
    document = report_document([0.5], seed=run.seed)
    document["final"]["matrices"] = {"confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    write_report(tmp_path / run.folder, document)
    with pytest.raises(ConfigError) as caught:
        draw(make_view(made, "confusion"), "confusion")
    line = str(caught.value)
    assert "confusion has 2 classes (seed 0) and 3 classes (seed 1): runs of different" in line
    assert made.cases[0].name in line
