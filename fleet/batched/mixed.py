"""Cohorts beside single agents: agents to which nothing happens need no process of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random

import numpy as np

from edge_agent.training.local_device import LocalModel
from fleet.batched.cohort.agent_data import joined
from fleet.batched.cohort.device_states import DeviceStates
from fleet.batched.cohort.devices import Part
from fleet.batched.cohort_shell import CohortDevices, CohortShell
from fleet.virtual.agent_shell import Device
from fleet.virtual.faults import confined, without_faults
from fleet.virtual.shells import World
from fleet.virtual.simulation import Setting
from models.package.package import ModelPackage
from models.runtime.program import Program

#: Agents of a cohort: a connection keeps so many messages that have not reached the broker.
_LARGEST = 2_000


def mixed(setting: Setting, *, any_profile: bool = False) -> Setting:
    """Returns a setting in which the agents without faults are cohorts.

    All stay processes of their own where the coordinator signs, or a fault concerns all of them.

    Args:
        setting: with agents that are processes of their own.
        any_profile: whether devices that are not always there, or whose links are slow, become
            devices that are always there; else they stay processes.
    """
    names = [device.agent_id for device in setting.devices]
    calm = set() if setting.signed else set(without_faults(setting.faults, names))
    alike = [d for d in setting.devices if d.agent_id in calm and (any_profile or _is_plain(d))]
    if len(alike) < 2:
        return setting
    inside = {device.agent_id for device in alike}
    rest = [device for device in setting.devices if device.agent_id not in inside]
    cohorts = [
        _Maker(number, setting.package, alike[start : start + _LARGEST])
        for number, start in enumerate(range(0, len(alike), _LARGEST))
    ]
    return replace(setting, devices=rest, cohorts=cohorts)


def mixed_trial(setting: Setting) -> Setting:
    """Returns a setting whose faults befall about half of its agents; the others are a cohort."""
    names = [device.agent_id for device in setting.devices]
    rng = Random(f"{setting.seed}/mixed")  # noqa: S311  a simulation
    faulty = sorted(rng.sample(names, len(names) // 2))
    return mixed(replace(setting, faults=confined(setting.faults, faulty)))


def _is_plain(device: Device) -> bool:
    profile = device.profile
    return not profile.available and profile.bytes_per_s is None and not device.trusted_keys


class _Maker:
    """Makes the process of a cohort in the world of a simulation."""

    def __init__(self, number: int, package: ModelPackage, devices: Sequence[Device]) -> None:
        self._number = number
        self._package = package
        self._devices = devices

    def __call__(self, world: World) -> CohortShell:
        devices, package = self._devices, self._package
        speed = np.array([device.profile.seconds_per_step for device in devices])
        part = Part(
            self._number,
            [device.agent_id for device in devices],
            joined([device.dataset for device in devices]),
            DeviceStates(None, len(devices)),
            speed,
            package,
            _model(package),
            None,
            "bytes",
        )
        phases = {device.agent_id: device.phases for device in devices}
        return CohortShell(
            world,
            self._number,
            CohortDevices(
                part,
                devices[0].federation,
                phases.__getitem__,
                np.array([device.profile.memory_bytes for device in devices], np.int64),
                max(device.profile.load_s for device in devices),
            ),
        )


@lru_cache(maxsize=2)
def _model(package: ModelPackage) -> LocalModel:
    """Returns a model, loaded; a sweep simulates the same one again and again."""
    program = Program(package.program, package.spec, frozen=package.frozen)
    return LocalModel(program, package.personal)
