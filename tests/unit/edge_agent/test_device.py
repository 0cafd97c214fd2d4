"""What is read from /proc and /sys: folders made here stand for other machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent import device
from edge_agent.device import LinuxDevice, battery_percent
from edge_agent.machine.limits import DeviceReadings, LimitsConfig
from fedge.system import (
    available_bytes,
    memory_bytes,
    memory_limit_bytes,
    resident_bytes,
    temperature_c,
)

Put = Callable[[str, str], None]
_BUSCTL, _DBUS = shutil.which("busctl"), shutil.which("dbus-daemon")
ALL = LimitsConfig(max_temperature_c=70, min_battery_percent=20, pause_on_metered=True)
ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    return write


@pytest.fixture(autouse=True)
def no_network_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


def local(hour: int, minute: int) -> Callable[[], time.struct_time]:
    return lambda: time.struct_time((2026, 3, 29, hour, minute, 59, 6, 88, 1))


def battery(put: Put, name: str, **files: str) -> None:
    for file, text in ({"type": "Battery", "status": "Discharging"} | files).items():
        put(f"sys/class/power_supply/{name}/{file}", text)


def test_this_machine_can_be_read() -> None:
    found = LinuxDevice().read(ALL)
    assert 0 <= found.minute < 1440
    assert found.available_bytes is not None
    assert 1 << 20 < found.available_bytes <= memory_bytes()
    own = resident_bytes()
    assert own is not None
    assert 1 << 20 < own < memory_bytes()


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    found = LinuxDevice(tmp_path, local_time=local(23, 5)).read(ALL)
    assert found == DeviceReadings(minute=23 * 60 + 5)


def test_sensors_that_no_limit_needs_are_left_alone(tmp_path: Path, put: Put) -> None:
    put("sys/class/thermal/thermal_zone0/temp", "81000")
    battery(put, "BAT0", capacity="5")
    found = LinuxDevice(tmp_path, local_time=local(0, 0)).read(LimitsConfig())
    assert (found.temperature_c, found.battery_percent, found.metered) == (None, None, None)


def test_the_hottest_sensor_counts_and_broken_ones_do_not(tmp_path: Path, put: Put) -> None:
    for number, text in enumerate(["48312", "61200", "-273200", "999999", "", "hot"]):
        put(f"sys/class/thermal/thermal_zone{number}/temp", text)
    assert temperature_c(tmp_path) == 61.2


def test_the_emptiest_battery_counts_while_it_is_discharged(tmp_path: Path, put: Put) -> None:
    battery(put, "BAT0", capacity="80")
    battery(put, "BAT1", capacity="35", scope="System")
    assert battery_percent(tmp_path) == 35
    battery(put, "mouse", capacity="3", scope="Device")
    put("sys/class/power_supply/AC/type", "Mains")
    put("sys/class/power_supply/AC/online", "0")
    assert battery_percent(tmp_path) == 35
    for name in ("BAT0", "BAT1"):
        put(f"sys/class/power_supply/{name}/status", "Charging")
    assert battery_percent(tmp_path) is None


def test_available_memory_is_the_system_s(tmp_path: Path, put: Put) -> None:
    put("proc/meminfo", "MemTotal:  948304 kB\nMemFree: 10 kB\nMemAvailable:  512000 kB")
    assert available_bytes(tmp_path) == 512_000 * 1024


def test_a_control_group_may_leave_less(tmp_path: Path, put: Put) -> None:
    put("proc/meminfo", "MemAvailable:  512000 kB")
    put("proc/self/cgroup", "0::/system.slice/fedge-agent.service")
    group = "sys/fs/cgroup/system.slice/fedge-agent.service"
    put(f"{group}/memory.max", "max")
    put(f"{group}/memory.current", "90000000")
    assert available_bytes(tmp_path) == 512_000 * 1024
    put(f"{group}/memory.max", "100000000")
    assert available_bytes(tmp_path) == 10_000_000
    put(f"{group}/memory.stat", "anon 50000000\ninactive_file 5000000")
    assert available_bytes(tmp_path) == 15_000_000
    put(f"{group}/memory.high", "98000000")
    assert available_bytes(tmp_path) == 13_000_000
    put("sys/fs/cgroup/system.slice/memory.max", "60000000")
    put("sys/fs/cgroup/system.slice/memory.current", "58000000")
    assert available_bytes(tmp_path) == 2_000_000
    assert memory_limit_bytes(tmp_path) == 60_000_000


def test_a_process_in_no_limited_group_has_no_limit(tmp_path: Path, put: Put) -> None:
    assert memory_limit_bytes(tmp_path) is None
    put("proc/self/cgroup", "0::/user.slice")
    put("sys/fs/cgroup/user.slice/memory.max", "max")
    assert memory_limit_bytes(tmp_path) is None


@pytest.mark.parametrize(
    ("link", "uevent", "metered"),
    [("wlan0", "", False), ("wwan0", "", True), ("ppp0", "", True), ("usb0", "DEVTYPE=wwan", True)],
)
def test_a_default_route_over_a_mobile_link_is_metered(
    tmp_path: Path, put: Put, link: str, uevent: str, metered: bool
) -> None:
    other = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
    put(
        "proc/net/route",
        ROUTES + other + f"{link}\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0",
    )
    put(f"sys/class/net/{link}/uevent", f"INTERFACE={link}\n{uevent}")
    assert LinuxDevice(tmp_path).read(ALL).metered is metered


def test_the_better_of_two_default_routes_counts(tmp_path: Path, put: Put) -> None:
    rows = [
        f"{link}\t00000000\t0100A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n"
        for link, metric in (("wwan0", 700), ("eth0", 100))
    ]
    put("proc/net/route", ROUTES + "".join(rows))
    assert LinuxDevice(tmp_path).read(ALL).metered is False


def test_a_default_route_of_ipv6_counts_too(tmp_path: Path, put: Put) -> None:
    zeros = "0" * 32
    put("proc/net/ipv6_route", f"{zeros} 00 {zeros} 00 {zeros} 00000400 1 0 00000003 wwan0")
    assert LinuxDevice(tmp_path).read(ALL).metered is True


@pytest.mark.parametrize(
    ("answer", "metered"),
    [("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False), ("u 0", None), ("", None)],
)
def test_network_manager_s_word_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, metered: bool | None
) -> None:
    # The program of that name is not ours and its bus is not here: a script gives its answer.
    program = tmp_path / "bin" / "busctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert LinuxDevice(tmp_path).read(ALL).metered is metered


def test_network_manager_is_asked_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    now_s = [0.0]

    def ask(_root: Path) -> bool:
        asked.append(now_s[0])
        return False

    monkeypatch.setattr(device, "is_metered", ask)
    found = LinuxDevice(tmp_path, clock=lambda: now_s[0])
    for now_s[0] in (0.0, 15.0, 59.0, 60.0, 75.0):
        found.read(ALL)
    assert asked == [0.0, 60.0]


@pytest.mark.skipif(_BUSCTL is None or _DBUS is None, reason="no systemd or no D-Bus here")
def test_a_real_bus_without_network_manager_leaves_it_to_the_routes(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    command = [str(_DBUS), "--session", "--nofork", f"--print-address={writing}"]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as bus:
        try:
            os.close(writing)
            with os.fdopen(reading) as addresses:
                monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", addresses.readline().strip())
            monkeypatch.setenv("PATH", str(Path(str(_BUSCTL)).parent))
            put("proc/net/route", ROUTES + "wwan0\t00000000\t0\t0003\t0\t0\t600\t00000000")
            assert LinuxDevice(tmp_path).read(ALL).metered is True
        finally:
            bus.terminate()
