"""Agents of one process: what is the same for all is in memory once."""

from __future__ import annotations

import gc

from edge_agent.machine.decoded_plan import CommonBlobs
from edge_agent.machine.events import LoadPackage, StartJob
from tests.unit.edge_agent.agent_stage import PACKAGE, THETA, Device, only, ref


def ready(common: CommonBlobs | None) -> Device:
    device = Device(common=common)
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    device.loaded()
    return device


def job(device: Device) -> StartJob:
    device.plan()
    (found,) = only(device.blob(THETA.tobytes()), StartJob)
    return found


def test_agents_of_one_process_train_from_one_theta() -> None:
    common = CommonBlobs()
    one, other = (job(ready(common)) for _ in range(2))
    assert one.blobs["weights"] is other.blobs["weights"]
    assert not one.blobs["weights"].flags.writeable
    assert one.blobs["weights"].tobytes() == THETA.tobytes()


def test_agents_apart_have_their_own() -> None:
    one, other = (job(ready(None)) for _ in range(2))
    assert one.blobs["weights"] is not other.blobs["weights"]


def test_every_agent_fetches_its_own_copy() -> None:
    common = CommonBlobs()
    job(ready(common))
    second = ready(common)
    second.plan()
    assert only(second.actions, StartJob) == [], "it waits for its own download"


def test_packages_that_arrive_at_the_same_time_are_one() -> None:
    common = CommonBlobs()
    devices = [Device(common=common) for _ in range(2)]
    loads = []
    for device in devices:
        device.coordinator()
        device.manifest()
    for device in devices:
        loads += only(device.blob(PACKAGE), LoadPackage)
    assert loads[0].wire == PACKAGE
    assert loads[0].wire is loads[1].wire


def test_a_vector_is_freed_with_the_last_plan_that_needs_it() -> None:
    common = CommonBlobs()
    device = ready(common)
    job(device)
    device.actions.clear()
    assert len(common.vectors) == 1
    device.plan(round_id=2, blobs={"weights": ref(b"the next theta")})
    gc.collect()
    assert len(common.vectors) == 0
