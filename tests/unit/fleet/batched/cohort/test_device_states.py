"""States of a fleet's devices: as a device's own, whatever else is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_agent.machine.device_state import DeviceState, rounded_residuals
from fleet.batched.cohort.device_states import CohortState, DeviceStates, device_state

AGENTS = np.array([1, 3])
NONE = np.zeros(2, np.uint8)


def state(value: float) -> CohortState:
    residual = np.array([[value, -value / 3, 1e-9], [0, 0, 0]], np.float32)
    return CohortState({"delta": residual}, {"control": np.full((2, 3), value, np.float32)})


def test_a_state_is_rounded_like_a_device_s_own(tmp_path: Path) -> None:
    states = DeviceStates(tmp_path, 5)
    slots = states.write(AGENTS, NONE, state(0.7))
    assert slots.tolist() == [1, 1]
    found = states.read(AGENTS, slots)
    for place in range(2):
        own = rounded_residuals({"delta": state(0.7).residuals["delta"][place]})
        expected = own["delta"].vector if own else np.zeros(3, np.float32)
        np.testing.assert_array_equal(found.residuals["delta"][place], expected)
        device = device_state(found, place, "model", "session", "scaffold")
        assert isinstance(device, DeviceState)
        assert sorted(device.residuals) == sorted(own)


def test_the_state_that_counts_stays_until_its_slot_is_given_up(tmp_path: Path) -> None:
    states = DeviceStates(tmp_path, 5)
    first = states.write(AGENTS, NONE, state(1.0))
    second = states.write(AGENTS, first, state(2.0))
    again = states.write(AGENTS, first, state(3.0))  # the round is repeated
    assert (first.tolist(), second.tolist(), again.tolist()) == ([1, 1], [2, 2], [2, 2])
    assert states.read(AGENTS, first).vectors["control"][0, 0] == 1.0
    assert states.read(AGENTS, again).vectors["control"][0, 0] == 3.0


def test_another_process_reads_the_same_states(tmp_path: Path) -> None:
    slots = DeviceStates(tmp_path, 5).write(AGENTS, NONE, state(1.5))
    found = DeviceStates(tmp_path, 5).read(AGENTS, slots)
    np.testing.assert_array_equal(found.vectors["control"], np.full((2, 3), 1.5, np.float32))


def test_nothing_to_remember_takes_no_disk(tmp_path: Path) -> None:
    states = DeviceStates(tmp_path / "devices", 5)
    assert states.write(AGENTS, NONE, CohortState({}, {})).tolist() == [0, 0]
    assert not (tmp_path / "devices").exists()


def test_what_a_state_lacks_is_not_remembered_from_the_one_before_the_last(tmp_path: Path) -> None:
    states = DeviceStates(tmp_path, 5)
    slots = states.write(AGENTS, NONE, state(1.0))
    nothing_left = CohortState({}, state(2.0).vectors)
    slots = states.write(AGENTS, slots, nothing_left)
    slots = states.write(AGENTS, slots, nothing_left)  # where the first state was
    found = states.read(AGENTS, slots)
    assert not found.residuals["delta"].any()
    assert not device_state(found, 0, "model", "session", "scaffold").residuals
    slots = states.write(AGENTS, slots, CohortState({}, {}))
    assert not states.read(AGENTS, slots).vectors["control"].any()
