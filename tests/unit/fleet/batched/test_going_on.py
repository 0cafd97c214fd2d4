"""A simulation with cohorts that was interrupted: it goes on, and ends as if nothing had been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.machine.standing import Standing
from coordinator.operate import open_store
from coordinator.records.records import RoundRecord
from fedge.errors import ConfigError, FleetError
from fleet.batched.simulate import Simulated, Stopped, simulate_fleet
from fleet.virtual.profiles import load_profiles
from tests.unit.fleet.batched.fleets import Fleet, Quiet, make_fleet

#: Several parts, states of devices, evaluation, half of the agents asked.
CHANGES: dict[str, Any] = {
    "agents": 150,  # parts of 64
    "partition.clients": 150,
    "federation.rounds": 3,
    "federation.codec": {"name": "int8"},
    "federation.cohort": {"fraction": 0.5},
}


class InterruptingTold(Quiet):
    """Interrupts when it is told something for the n-th time."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def round(self, record: RoundRecord) -> None:
        self._count()

    def working(self, what: str, done: int, of: int) -> None:
        self._count()


class InterruptingMeasurement(Quiet):
    """Interrupts a round that is committed, before anybody has measured."""

    def __init__(self, round_id: int) -> None:
        super().__init__()
        self._round_id = round_id
        self._open = 1

    def round(self, record: RoundRecord) -> None:
        self._open = record.round_id + 1

    def working(self, what: str, done: int, of: int) -> None:
        if (self._open, what, done) == (self._round_id, "evaluate", 0):
            raise KeyboardInterrupt


def fleet(**changes: Any) -> Fleet:
    made = make_fleet("house_price", CHANGES | changes, "bytes", vectorized=False)
    return replace(made, how=replace(made.how, is_kept=True))


def simulated(made: Fleet, folder: Path, told: Quiet | None = None) -> Simulated:
    return simulate_fleet(made.prepared, load_profiles(), made.how, folder, told or Quiet())


def interrupted(made: Fleet, folder: Path, at: int) -> None:
    with pytest.raises(Stopped):
        simulated(made, folder, InterruptingTold(at))


def test_wherever_it_was_interrupted_it_ends_the_same(tmp_path: Path) -> None:
    made = fleet()
    whole = simulated(made, tmp_path / "whole")
    for at in range(1, 30):
        folder = tmp_path / str(at)
        try:
            simulated(made, folder, InterruptingTold(at))
        except Stopped:
            found = simulated(made, folder)
            assert found.records == whole.records, at
            np.testing.assert_array_equal(found.theta, whole.theta)
            assert found.virtual_s == whole.virtual_s
            assert found.odd_data == whole.odd_data
        else:
            break
    else:
        raise AssertionError("it never ended")
    assert at > 20


@pytest.mark.parametrize("quarantine", [{"after": 2, "rounds": 2}, {"after": 0}])
def test_faults_of_agents_count_the_same_wherever_it_was_interrupted(
    quarantine: dict[str, int], tmp_path: Path
) -> None:
    made = fleet(
        **{
            "agents": 40,
            "partition.clients": 40,
            "federation.rounds": 4,
            "federation.codec": {"name": "float32"},
            "federation.cohort": {"fraction": 1.0},
            "federation.norm_bound": {"clip": 1.0, "refuse": 1.1},
            "federation.quarantine": quarantine,
        }
    )
    whole = simulated(made, tmp_path / "whole")
    assert any(record.refused for record in whole.records)
    assert (len({record.asked for record in whole.records}) > 1) == bool(quarantine["after"])
    for at in (each.round_id for each in whole.records if each.evaluated):
        with pytest.raises(Stopped):
            simulated(made, tmp_path / str(at), InterruptingMeasurement(at))
        found = simulated(made, tmp_path / str(at))
        assert found.records == whole.records, at
        np.testing.assert_array_equal(found.theta, whole.theta)


def test_a_round_that_nobody_measures_ends_with_its_commit(tmp_path: Path) -> None:
    made = fleet(**{"federation.evaluation": {"every": 2}})
    whole = simulated(made, tmp_path / "whole")
    for at in (5, 6, 7):  # around the end of the first round
        interrupted(made, tmp_path / str(at), at)
        assert simulated(made, tmp_path / str(at)).records == whole.records


@pytest.mark.parametrize("algorithm", ["scaffold", "fedadam"])
def test_states_of_server_and_devices_go_on(algorithm: str, tmp_path: Path) -> None:
    sgd = {"epochs": 1, "optimizer": "sgd", "learning_rate": 0.01}
    made = fleet(**{"federation.algorithm": algorithm, "federation.training": sgd})
    whole = simulated(made, tmp_path / "whole")
    interrupted(made, tmp_path / "cut", 12)
    found = simulated(made, tmp_path / "cut")
    assert found.records == whole.records
    np.testing.assert_array_equal(found.theta, whole.theta)


def damaged(made: Fleet, folder: Path, name: str, data: bytes | None) -> None:
    interrupted(made, folder, 12)
    (path,) = folder.glob(name)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", None])
@pytest.mark.parametrize("name", ["columns/1-ended.npz", "devices/0/residual-delta.npy"])
def test_what_is_damaged_is_named_in_one_line(
    name: str, data: bytes | None, tmp_path: Path
) -> None:
    made = fleet()
    damaged(made, tmp_path, name, data)
    with pytest.raises(FleetError, match=r"begin anew without --resume") as found:
        simulated(made, tmp_path)
    assert "\n" not in str(found.value)


def test_a_damaged_choice_of_the_kernel_is_named(tmp_path: Path) -> None:
    made = fleet()
    damaged(made, tmp_path, "kernel.json", b"{")
    with pytest.raises(FleetError, match=r"kernel.json is damaged"):
        simulated(made, tmp_path)


def test_another_kernel_than_it_was_begun_with_is_refused(tmp_path: Path) -> None:
    made = fleet()
    interrupted(made, tmp_path, 12)
    other = replace(made, how=replace(made.how, kernel="vectorized"))
    with pytest.raises(ConfigError, match=r"begun with kernel single"):
        simulated(other, tmp_path)


def test_an_agent_in_quarantine_stays_there(tmp_path: Path) -> None:
    made = fleet()
    interrupted(made, tmp_path, 12)
    name = made.participants.rows.names[0]
    store = open_store(made.config, tmp_path / "coordinator")
    store.save_standing(name, Standing().quarantined("tested"))
    store.flush()
    store.close()
    found = simulated(made, tmp_path)
    assert len(found.records) == 3
    assert all(name not in record.agents for record in found.records[1:])
