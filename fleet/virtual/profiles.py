"""Device profiles: speed, link and available hours of simulated devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from broker.protocol.messages import Count
from fedge.yaml_config import load_config
from learning.algorithms.training import TrainingPlan

#: Profiles that ship with the package.
SHIPPED = Path(__file__).parent / "profiles.yaml"
_DAY_S = 86_400.0
#: Added to an hour's end, so that rounding cannot put the moment before it.
_INSIDE_S = 0.001
#: A forward pass is about a third of a gradient (one pass forward, two of its size back).
_EVALUATION_SHARE = 1 / 3

Hour = Annotated[float, Meta(ge=0, le=24)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Profile of one kind of device.

    Attributes:
        seconds_per_step: of a training step.
        load_s: to load a model package.
        memory_bytes: of the device.
        bytes_per_s: of its link, each way; no limit when not given.
        available: hours of the day at which the device runs; always when not given.
        share: of the fleet.
    """

    seconds_per_step: Seconds = 0.001
    load_s: Seconds = 0.5
    memory_bytes: Count = 0
    bytes_per_s: Annotated[float, Meta(gt=0)] | None = None
    available: tuple[tuple[Hour, Hour], ...] = ()
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0

    def training_s(self, rows: int, plan: TrainingPlan) -> float:
        """Returns the virtual time of a training job."""
        size = plan.batch_size or rows
        steps = plan.epochs * math.ceil(rows / max(1, size))
        return self.seconds_per_step * (min(steps, plan.max_steps) if plan.max_steps else steps)

    def evaluation_s(self, rows: int, batch_size: int) -> float:
        """Returns the virtual time of an evaluation."""
        return self.seconds_per_step * _EVALUATION_SHARE * math.ceil(rows / batch_size)

    def is_available(self, time_s: float) -> bool:
        """Returns whether the device runs at a time of the day."""
        hour = time_s % _DAY_S / 3600
        return not self.available or any(_within(hour, span) for span in self.available)

    def next_change_s(self, time_s: float) -> float | None:
        """Returns the seconds until the device next starts or stops; None when it never does."""
        moments = {3600 * hour for span in self.available for hour in span}
        waits = sorted((moment - time_s) % _DAY_S or _DAY_S for moment in moments)
        now = self.is_available(time_s)
        later = (wait + _INSIDE_S for wait in waits)
        return next((wait for wait in later if self.is_available(time_s + wait) != now), None)


class Profiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The kinds of devices of a fleet.

    Attributes:
        start_hour: of the day at which the simulation begins.
        profiles: by name; shares are relative to their sum.
    """

    profiles: Annotated[dict[str, DeviceProfile], Meta(min_length=1)]
    start_hour: Hour = 12.0

    def assign(self, agents: Sequence[str], seed: int) -> dict[str, DeviceProfile]:
        """Returns a profile for each agent, at random, each kind in proportion to its share."""
        kinds = list(self.profiles.values())
        total = sum(kind.share for kind in kinds)
        ends = [sum(kind.share for kind in kinds[: n + 1]) / total for n in range(len(kinds))]
        shuffled = sorted(agents)
        Random(f"{seed}/profiles").shuffle(shuffled)  # noqa: S311  a simulation
        assigned = {}
        for number, agent in enumerate(shuffled):
            place = (number + 0.5) / len(shuffled)
            assigned[agent] = next(
                k for k, end in zip(kinds, ends, strict=True) if place <= end + 1e-9
            )
        return {agent: assigned[agent] for agent in agents}

    def column(self, key: str, agents: Sequence[str], seed: int) -> NDArray[np.float64]:
        """Returns a number of each agent's profile, shape (n,); see `assign`."""
        if len(self.profiles) == 1:
            return np.full(len(agents), getattr(next(iter(self.profiles.values())), key))
        assigned = self.assign(agents, seed)
        values = (getattr(assigned[agent], key) for agent in agents)
        return np.fromiter(values, np.float64, len(agents))


def load_profiles(path: Path = SHIPPED) -> Profiles:
    """Returns the profiles in a YAML file.

    Raises:
        ConfigError: begins with file and key.
    """
    return load_config(path, Profiles)


def _within(hour: float, span: tuple[float, float]) -> bool:
    begin, end = span
    return begin <= hour < end if begin <= end else hour >= begin or hour < end
