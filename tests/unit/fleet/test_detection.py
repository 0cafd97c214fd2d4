"""Anomaly detection: losses separate labelled rows from other rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedge.errors import ConfigError, DataError
from fleet.detection import measure_detection, ranking
from fleet.participants import Participants, make_participants
from fleet.scenario import load_scenario
from models.zoo import load_zoo

PACKAGE = load_zoo("house_price")


def test_ranking_is_the_share_of_pairs_in_the_right_order() -> None:
    label = np.array([False, False, True, True])
    assert ranking(np.array([1.0, 2, 3, 4]), label) == 1
    assert ranking(np.array([4.0, 3, 2, 1]), label) == 0
    assert ranking(np.array([1.0, 3, 2, 4]), label) == 0.75  # 2 < 3 is the one wrong pair of four
    assert ranking(np.array([5.0, 5, 5, 5]), label) == 0.5


def participants_of(
    folder: Path, worn: list[float], path: str = "data.npz", **changes: Any
) -> Participants:
    """Agent a learns from four rows and holds out two; b has the labels given."""
    rows = 6 + len(worn)
    x = np.zeros((rows, 2), np.float32)
    y = np.zeros(rows, np.float32)
    y[:4] = 0.1, 0.2, 0.3, 0.4  # what θ = 0 is wrong by: losses of 0.01 to 0.16
    y[6:] = np.arange(1, len(worn) + 1) / 10
    client = np.array([0] * 6 + [1] * len(worn))
    worn = [0.0] * 6 + worn
    if path.endswith("npz"):
        np.savez(folder / path, x=x, y=y, client=client, worn=np.array(worn))
    else:
        table = np.c_[x, y, client, worn]
        np.savetxt(folder / path, table, header="f,g,y,client,worn", delimiter=",", comments="")
    arrays = path.endswith("npz")
    document = {
        "name": "s",
        "description": "d",
        "licence": "made up",
        "data": {
            "path": path,
            "inputs": {"features": {"array": "x"} if arrays else {"columns": ["f", "g"]}},
            "target": {"array": "y"} if arrays else {"column": "y"},
            "test_fraction": 0.34,
        },
        "partition": {"kind": "client", "prefix": "a"},
        "unseen": ["a-1"],
        "federation": {"model": "house_price"},
        "detection": {"label": "worn", "quantile": 0.75},
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(document | changes))
    scenario = load_scenario(folder / "s.yaml")
    return make_participants(scenario, folder / "s.yaml", PACKAGE.spec, None)


ZERO = np.zeros(3, np.float32)


@pytest.mark.parametrize("path", ["data.npz", "data.csv"])
def test_the_limit_of_the_alarm_comes_from_training_rows(tmp_path: Path, path: str) -> None:
    # Losses of the measured rows: 0.01, 0.04, 0.09, 0.16, 0.25. Three quarters of those learned
    # from (0.01 to 0.16) are at most 0.1075: the last two raise the alarm.
    participants = participants_of(tmp_path, [0, 0, 1, 0, 1], path)
    (figures,) = measure_detection(participants, PACKAGE, {"federated": {"": ZERO}}).values()
    assert figures["auc"] == pytest.approx(5 / 6)
    assert figures["found"] == 0.5
    assert figures["false_alarms"] == pytest.approx(1 / 3)


def test_models_of_one_kind_are_averaged(tmp_path: Path) -> None:
    participants = participants_of(tmp_path, [0, 0, 1, 0, 1])
    # The other model is right about the last row, and so ranks everything the other way.
    last = np.array([0, 0, 0.5], np.float32)
    models = {"own": {"a-0": ZERO}, "pooled": {"": ZERO, "a-0": last}}
    figures = measure_detection(participants, PACKAGE, models)
    assert figures["own"]["auc"] == pytest.approx(5 / 6)
    assert figures["pooled"]["auc"] == pytest.approx((5 / 6 + 1 / 6) / 2)


def test_without_unseen_agents_held_out_rows_are_judged(tmp_path: Path) -> None:
    participants = participants_of(tmp_path, [0, 0, 0, 0, 1], unseen=[])
    (figures,) = measure_detection(participants, PACKAGE, {"federated": {"": ZERO}}).values()
    assert figures["auc"] == 1


@pytest.mark.parametrize(
    ("worn", "expected"),
    [
        ([0, 2, 1], "detection.label must be 0 or 1 in every row"),
        ([0, 0, 0], "detection.label is the same in all measured rows"),
    ],
)
def test_labels_other_than_both_0_and_1_are_refused(
    tmp_path: Path, worn: list[float], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        measure_detection(participants_of(tmp_path, worn), PACKAGE, {"federated": {"": ZERO}})


def test_a_missing_label_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no array 'wron'; did you mean worn\?"):
        participants_of(tmp_path, [0, 1], detection={"label": "wron"})
