"""When a device pauses, and when it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.machine.limits import DeviceReadings, Limits, LimitsConfig
from fedge.errors import ConfigError
from fedge.yaml_config import parse_config

NOON = 12 * 60


def judged(limits: Limits, **readings: Any) -> str | None:
    pause = limits.update(DeviceReadings(**({"minute": NOON} | readings)))
    return None if pause is None else pause.reason


def test_without_limits_it_never_pauses() -> None:
    limits = Limits(LimitsConfig())
    everything = {"temperature_c": 120.0, "battery_percent": 1.0, "metered": True}
    assert judged(limits, **everything) is None
    assert not LimitsConfig().watched


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("22:00-06:30", ["22:00", "23:59", "00:00", "06:29"], ["21:59", "06:30", "12:00"]),
        ("08:00-17:00", ["08:00", "16:59"], ["07:59", "17:00", "00:00"]),
        ("00:00-23:59", ["00:00", "23:58"], ["23:59"]),
    ],
)
def test_quiet_hours_may_go_past_midnight(
    hours: str, inside: list[str], outside: list[str]
) -> None:
    limits = Limits(LimitsConfig(quiet_hours=(hours,)))
    for text in inside + outside:
        minute = 60 * int(text[:2]) + int(text[3:])
        assert (judged(limits, minute=minute) == "quiet_hours") == (text in inside), text


def test_any_of_several_quiet_hours_counts() -> None:
    limits = Limits(LimitsConfig(quiet_hours=("06:00-08:00", "11:30-13:00")))
    assert [judged(limits, minute=60 * hour) for hour in (7, 9, 12)] == [
        "quiet_hours",
        None,
        "quiet_hours",
    ]


def test_it_goes_on_only_when_it_is_clearly_cooler() -> None:
    limits = Limits(LimitsConfig(max_temperature_c=75))
    found = [judged(limits, temperature_c=c) for c in (75.0, 75.1, 72.0, 70.1, 70.0, 74.9)]
    assert found == [None, "too_hot", "too_hot", "too_hot", None, None]


def test_it_goes_on_when_the_battery_is_clearly_fuller_or_being_charged() -> None:
    limits = Limits(LimitsConfig(min_battery_percent=30))
    found = [judged(limits, battery_percent=p) for p in (30.0, 29.0, 34.0, 35.0, 31.0, 10.0)]
    assert found == [None, "low_battery", "low_battery", None, None, "low_battery"]
    assert judged(limits, battery_percent=None) is None  # on mains


def test_a_sensor_that_is_missing_stops_nobody() -> None:
    config = LimitsConfig(max_temperature_c=50, min_battery_percent=50, pause_on_metered=True)
    assert judged(Limits(config)) is None


def test_the_words_are_those_of_the_moment_when_the_pause_began() -> None:
    limits = Limits(LimitsConfig(max_temperature_c=75))
    first = limits.update(DeviceReadings(NOON, temperature_c=80.0))
    assert limits.update(DeviceReadings(NOON, temperature_c=81.0)) is first
    assert str(first) == "too_hot: 80 °C, limit 75"


def test_a_metered_network_is_known_even_when_it_pauses_for_something_else() -> None:
    limits = Limits(LimitsConfig(quiet_hours=("11:00-13:00",), pause_on_metered=True))
    assert judged(limits, metered=True) == "quiet_hours"
    assert limits.metered
    assert judged(limits, minute=0, metered=True) == "metered"
    assert judged(limits, minute=0, metered=False) is None
    assert not limits.metered


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        ("22-6", "'22:00-06:30'"),
        ("22:00-24:00", "is not of the form"),
        ("22:00-06:60", "is not of the form"),
        ("22:00-22:00", "has no length"),
        ("22:00-06:00\n", "is not of the form"),
    ],
)
def test_quiet_hours_that_are_none_are_refused(hours: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"quiet_hours": [hours]}, LimitsConfig, "agent.yaml", key="limits")
