"""Choice of the workers of a simulation: this process, several of this machine, or Ray."""

from __future__ import annotations

from fleet.batched.fleet_setup import FleetSetup
from fleet.batched.ray_workers import RayWorkers
from fleet.batched.workers import OwnProcess, Processes, Workers, default_count


def make_workers(setup: FleetSetup, count: int | None, ray: str | None = None) -> Workers:
    """Returns the workers of a fleet.

    Args:
        setup: of the fleet.
        count: number of processes; None: one for each core, where there are parts for them.
        ray: address of a Ray that works instead; see `fleet.batched.ray_workers`.

    Raises:
        ConfigError: Ray is wanted, and is not there.
    """
    if ray is not None:
        return RayWorkers(setup, count, ray)
    wanted = default_count(len(setup.bounds)) if count is None else min(count, len(setup.bounds))
    return OwnProcess(setup) if wanted <= 1 else Processes(setup, wanted)
