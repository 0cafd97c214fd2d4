"""Who works on the parts of a fleet does not matter; a process that ends is replaced."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError
from fleet.batched import ray_workers, simulate, workers
from fleet.batched.cohort.task import PartAnswer
from fleet.batched.fleet_setup import part_bounds
from fleet.batched.workers import OwnProcess, Processes
from tests.unit.fleet.batched.fleets import cohorts, cohorts_in, make_fleet

#: Three parts: more than one for each process.
CHANGES: dict[str, Any] = {
    "agents": 150,
    "federation.rounds": 2,
    "federation.algorithm": "scaffold",
    "federation.cohort": {"fraction": 0.5},
    "federation.codec": {"name": "int8", "block_size": 2},
}


def test_parts_depend_on_the_number_of_agents_alone() -> None:
    assert part_bounds(150) == [(0, 64), (64, 128), (128, 150)]
    assert part_bounds(1) == [(0, 1)]
    bounds = part_bounds(1_000_000)
    assert bounds[-1] == (999_424, 1_000_000)
    assert max(stop - start for start, stop in bounds) == 16_384


@pytest.mark.parametrize("mode", ["bytes", "arrays"])
def test_processes_find_the_same_to_the_last_bit_as_one(mode: Any) -> None:
    fleet = make_fleet("house_price", CHANGES, mode, vectorized=True)
    one, two = cohorts(fleet), cohorts(fleet, processes=2)
    np.testing.assert_array_equal(one.theta, two.theta)
    assert one.records == two.records


class Killed(Processes):
    """Ends all of its processes in the second phase, after some answers."""

    phases = 0
    after = 0

    def run(self, jobs: Any) -> Iterator[PartAnswer]:
        type(self).phases += 1
        for number, answer in enumerate(super().run(jobs)):
            yield answer
            if type(self).phases == 2 and number == type(self).after:
                assert self._pool is not None
                for pid in list(self._pool._processes):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("after", [0, 2])
def test_processes_that_are_killed_are_replaced_and_nothing_is_lost(
    after: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the last answer of a phase the next one finds them gone."""
    fleet = make_fleet("house_price", CHANGES, "bytes", vectorized=True)
    expected = cohorts(fleet)
    Killed.phases, Killed.after = 0, after
    monkeypatch.setattr(simulate, "make_workers", lambda setup, *_: Killed(setup, 2))
    done = cohorts_in(tmp_path, fleet)
    assert Killed.phases > 2
    np.testing.assert_array_equal(done.theta, expected.theta)
    assert done.records == expected.records


def test_small_fleets_need_no_processes() -> None:
    assert workers.default_count(1) == 1


class Asked(Exception):
    """A phase has begun."""


class Looking(OwnProcess):
    """Does nothing but look at the setup and the first task."""

    def run(self, jobs: Any) -> Iterator[PartAnswer]:
        raise Asked(self._setup, jobs[0][1])


def test_a_machine_that_does_not_see_the_folder_of_the_states_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fleet = make_fleet("house_price", CHANGES, "arrays", vectorized=True)
    monkeypatch.setattr(simulate, "make_workers", lambda setup, *_: Looking(setup))
    with pytest.raises(Asked) as asked:
        cohorts_in(tmp_path, fleet)
    setup, whole = asked.value.args
    task, vectors = pickle.dumps(replace(whole, vectors={})), whole.vectors
    worker = ray_workers._Worker(str(tmp_path / "not here"))
    worker._setup = setup  # as Ray hands it over
    with pytest.raises(ConfigError, match="keep the run in a folder that all machines"):
        worker.work(0, task, vectors, [])
    (tmp_path / "here").touch()
    worker = ray_workers._Worker(str(tmp_path / "here"))
    worker._setup = setup
    answer = pickle.loads(worker.work(0, task, vectors, []))
    assert answer.counted


def test_ray_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    fleet = make_fleet("house_price", {"agents": 70}, "arrays", vectorized=True)
    with pytest.raises(ConfigError, match=r"pip install 'fedge\[ray\]'"):
        cohorts_in(tmp_path, fleet, ray="local")
