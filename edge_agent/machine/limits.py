"""Limits that the owner of a device sets, and when the device pauses because of them.

Pure: readings in, a reason to pause (or none) out. `edge_agent.device` takes the readings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

#: A paused device goes on when it is so much better than its limit: without a gap it would stop
#: and go at every reading.
COOLER_C = 5.0
FULLER_PERCENT = 5.0
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

#: Machine names of the reasons to pause.
PauseName = Literal["quiet_hours", "too_hot", "low_battery", "metered"]


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of what training may take from the device.

    Attributes:
        nice: of the threads that train; 19 gives way to everything else.
        cpu_share: of the time that training computes; it sleeps for the rest, between steps.
        max_memory_bytes: of the agent's process. What would not fit is not loaded; a process that
            grew above it starts anew.
        max_temperature_c: of the hottest sensor.
        min_battery_percent: while the device runs on its battery.
        pause_on_metered: no training, and nothing large fetched, while the network is paid by the
            byte.
        quiet_hours: without training, in local time: "22:00-06:30".
        check_s: between two readings of the sensors.
    """

    nice: Annotated[int, Meta(ge=0, le=19)] = 0
    cpu_share: Annotated[float, Meta(ge=0.01, le=1)] = 1.0
    max_memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | None = None
    max_temperature_c: Annotated[float, Meta(ge=0, le=150)] | None = None
    min_battery_percent: Annotated[float, Meta(gt=0, le=95)] | None = None
    pause_on_metered: bool = False
    quiet_hours: Annotated[tuple[str, ...], Meta(max_length=24)] = ()
    check_s: Annotated[float, Meta(ge=1, le=3600)] = 15.0

    def __post_init__(self) -> None:
        for text in self.quiet_hours:
            parse_hours(text)

    @property
    def watched(self) -> bool:
        """Whether any limit needs readings."""
        return bool(
            self.quiet_hours
            or self.pause_on_metered
            or self.max_temperature_c is not None
            or self.min_battery_percent is not None
        )


@dataclass(frozen=True)
class DeviceReadings:
    """Readings of a device's sensors. None: it has no such sensor, or no limit needs it.

    Attributes:
        minute: of the day, local time, 0 to 1439.
        temperature_c: of the hottest sensor.
        battery_percent: of the emptiest battery that is being discharged; None on mains.
        metered: whether the way to the internet is paid by the byte.
        available_bytes: memory that a process could still take without swapping.
    """

    minute: int
    temperature_c: float | None = None
    battery_percent: float | None = None
    metered: bool | None = None
    available_bytes: int | None = None


@dataclass(frozen=True)
class PauseReason:
    """Reason for a pause: a machine name, and words for people."""

    reason: PauseName
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Limits:
    """Compares readings with limits; remembers the pause, so that it ends with a gap to the limit.

    Attributes:
        pause: why the device pauses now; None when it does not.
        metered: whether nothing large may be fetched, whatever else makes it pause.
    """

    def __init__(self, config: LimitsConfig) -> None:
        self._config = config
        self.pause: PauseReason | None = None
        self.metered = False

    def update(self, readings: DeviceReadings) -> PauseReason | None:
        """Takes new readings; the words stay those of the moment when the pause began."""
        self.metered = self._config.pause_on_metered and bool(readings.metered)
        found = self._find(readings)
        if found is None or self.pause is None or found.reason != self.pause.reason:
            self.pause = found
        return self.pause

    def _find(self, readings: DeviceReadings) -> PauseReason | None:
        config = self._config
        for text in config.quiet_hours:
            if is_within(text, readings.minute):
                return PauseReason("quiet_hours", f"{text} local time")
        return self._too_hot(readings) or self._low_battery(readings) or self._metered()

    def _was(self, reason: PauseName) -> bool:
        return self.pause is not None and self.pause.reason == reason

    def _too_hot(self, readings: DeviceReadings) -> PauseReason | None:
        limit, found = self._config.max_temperature_c, readings.temperature_c
        if limit is None or found is None:
            return None
        if found <= (limit - COOLER_C if self._was("too_hot") else limit):
            return None
        return PauseReason("too_hot", f"{found:.0f} °C, limit {limit:g}")

    def _low_battery(self, readings: DeviceReadings) -> PauseReason | None:
        limit, found = self._config.min_battery_percent, readings.battery_percent
        if limit is None or found is None:
            return None
        if found >= (limit + FULLER_PERCENT if self._was("low_battery") else limit):
            return None
        return PauseReason("low_battery", f"{found:.0f} %, limit {limit:g}")

    def _metered(self) -> PauseReason | None:
        return PauseReason("metered", "the network is paid by the byte") if self.metered else None


def parse_hours(text: str) -> tuple[int, int]:
    """Returns the first minute of the day inside, and the first one after.

    Raises:
        ValueError: not "HH:MM-HH:MM", or nothing lies between.
    """
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ValueError(f"quiet_hours: {text!r} is not of the form '22:00-06:30'; quote it")
    start, end = (60 * int(match[n]) + int(match[n + 1]) for n in (1, 3))
    if start == end:
        raise ValueError(f"quiet_hours: {text!r} has no length; '00:00-23:59' is nearly always")
    return start, end


def is_within(hours: str, minute: int) -> bool:
    """Whether a minute of the day lies in "HH:MM-HH:MM", which may go past midnight."""
    start, end = parse_hours(hours)
    if start < end:
        return start <= minute < end
    return minute >= start or minute < end
