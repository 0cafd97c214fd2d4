"""Plug-ins of a coordinator's configuration: loaded before its choices are checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.config import load_federation
from fedge.errors import ConfigError
from learning.algorithms.registry import ALGORITHMS
from tests.plugins import forgotten_plugins

HALF = """\
from learning.algorithms.fedavg import FedAvg
from learning.algorithms.registry import ALGORITHMS
from learning.registry import Settings


class HalfSettings(Settings, frozen=True, tag="test_half"):
    factor: float = 0.5


@ALGORITHMS.add
class Half(FedAvg):
    settings_type = HalfSettings

    def __init__(self, settings, training=None):
        self.learning_rate = settings.factor
"""


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    with forgotten_plugins():
        yield


def federation(folder: Path, *lines: str) -> Path:
    path = folder / "coordinator.yaml"
    path.write_text("\n".join(["federation: f", "model: house_price", *lines]))
    return path


def test_a_plug_ins_algorithm_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF)
    path = federation(tmp_path, "plugins: [half.py]", "algorithm: {name: test_half, factor: 0.25}")
    config = load_federation(path)
    assert ALGORITHMS.make(config.algorithm, config.training).learning_rate == 0.25


def test_settings_of_a_plug_in_are_checked(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF)
    path = federation(tmp_path, "plugins: [half.py]", "algorithm: {name: test_half, factr: 1}")
    message = r"coordinator\.yaml: algorithm\.factr: unknown key; did you mean factor\?"
    with pytest.raises(ConfigError, match=message):
        load_federation(path)


def test_without_the_plug_in_its_name_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="algorithm: unknown algorithm 'test_quarter'"):
        load_federation(federation(tmp_path, "algorithm: test_quarter"))


def test_a_name_that_exists_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HALF.replace("test_half", "fedavg"))
    path = federation(tmp_path, "plugins: [mine.py]")
    with pytest.raises(ConfigError) as caught:
        load_federation(path)
    assert str(caught.value).startswith(
        f"{path}: plugins[0]: {tmp_path}/mine.py, line 10: algorithm 'fedavg' is defined by "
        "learning.algorithms.fedavg.FedAvg and by fedge_plugin_mine_"
    )


def test_two_plug_ins_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"# {name}\n" + HALF.replace("half", "twice"))
    path = federation(tmp_path, "plugins: [one.py, two.py]")
    message = (
        r"plugins\[1\]: .*/two\.py, line 11: algorithm 'test_twice' is defined by "
        r"fedge_plugin_one_\w+\.Half and by fedge_plugin_two_\w+\.Half$"
    )
    with pytest.raises(ConfigError, match=message):
        load_federation(path)


def test_a_phase_that_follows_another_is_no_task(tmp_path: Path) -> None:
    message = "task: 'evaluate' is no task, it follows another; tasks: train, statistics$"
    with pytest.raises(ConfigError, match=message):
        load_federation(federation(tmp_path, "task: evaluate"))
