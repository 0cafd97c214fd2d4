"""What the device is and how it feels: memory, temperature, battery, network.

Read from /proc and /sys, which every Linux has: psutil would cost a compiled wheel on each platform
and knows nothing of metered networks.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from edge_agent.limits import LimitsConfig, Readings

log = logging.getLogger(__name__)

#: NetworkManager is a process and a bus away: asked no more often than this.
_METERED_FOR_S = 60.0
_ASK_S = 2.0
#: NMMetered of NetworkManager's D-Bus interface: yes, and its own guess that it is.
_METERED = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}
#: A link to a telephone network, as the kernel and pppd name it.
_MOBILE = ("wwan", "ppp", "rmnet")
#: A sensor outside of these is broken or means something else.
_COLDEST_C, _HOTTEST_C = -40.0, 150.0


class Device(Protocol):
    """What an agent's shell asks how the device feels."""

    def read(self, limits: LimitsConfig) -> Readings:
        """What `limits` needs, now."""


class LinuxDevice:
    """This machine.

    Args:
        root: where /proc and /sys are found; another one in tests.
        clock: steady, in seconds.
        local_time: as `time.localtime`.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        local_time: Callable[[], time.struct_time] = time.localtime,
    ) -> None:
        self._root = root
        self._clock = clock
        self._local_time = local_time
        self._metered: bool | None = None
        self._metered_until_s = float("-inf")

    def read(self, limits: LimitsConfig) -> Readings:
        """See `Device`; sensors that no limit needs are left alone."""
        now = self._local_time()
        return Readings(
            minute=60 * now.tm_hour + now.tm_min,
            temperature_c=None if limits.max_temperature_c is None else temperature_c(self._root),
            battery_percent=(
                None if limits.min_battery_percent is None else battery_percent(self._root)
            ),
            metered=self._is_metered() if limits.pause_on_metered else None,
            available_bytes=available_bytes(self._root),
        )

    def _is_metered(self) -> bool | None:
        if self._clock() >= self._metered_until_s:
            self._metered = is_metered(self._root)
            self._metered_until_s = self._clock() + _METERED_FOR_S
        return self._metered


def memory_bytes() -> int:
    """Physical memory of this device; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still take without swapping, or being killed for it.

    What the system has left (proc(5): MemAvailable), or less where a control group says so
    (systemd's MemoryMax, a container).
    """
    rooms = [*_control_groups(root)]
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and (words := rest.split()) and words[0].isdecimal():
            rooms.append(int(words[0]) * 1024)
    return min(rooms, default=None)


def _control_groups(root: Path) -> Iterator[int]:
    """Bytes left in each control group that limits this process (cgroup v2: memory.max)."""
    lines = _text(root / "proc/self/cgroup").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    top = root / "sys/fs/cgroup"
    folder = top / own.lstrip("/")
    while folder.is_relative_to(top) and ".." not in folder.parts:
        # Above "high" the kernel holds a process up, above "max" it ends it.
        limits = [_text(folder / f"memory.{name}").strip() for name in ("high", "max")]
        limit = min((int(text) for text in limits if text.isdecimal()), default=None)
        used = _text(folder / "memory.current").strip()
        if limit is not None and used.isdecimal():
            # The kernel counts cached files too, and takes their memory back when it is needed.
            cached = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            yield max(0, limit - int(used) + int(cached.get("inactive_file", 0)))
        folder = folder.parent


def resident_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process holds (proc(5): the second number of /proc/self/statm)."""
    words = _text(root / "proc/self/statm").split()
    if len(words) < 2 or not words[1].isdecimal():
        return None
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def temperature_c(root: Path = Path("/")) -> float | None:
    """Of the hottest thermal zone; None when the kernel shows none."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        text = _text(path).strip()
        if text.lstrip("-").isdecimal():
            found.append(int(text) / 1000.0)  # sysfs-class-thermal: millidegree Celsius
    return max((c for c in found if _COLDEST_C <= c <= _HOTTEST_C), default=None)


def battery_percent(root: Path = Path("/")) -> float | None:
    """Of the emptiest battery that is being discharged; None without one.

    Batteries of mice and keyboards (scope "Device") are not the device's own.
    """
    found = []
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        kind, scope, status, capacity = (
            _text(folder / name).strip() for name in ("type", "scope", "status", "capacity")
        )
        own = kind == "Battery" and scope != "Device"
        if own and status == "Discharging" and capacity.isdecimal():
            found.append(float(capacity))
    return min(found, default=None)


def is_metered(root: Path = Path("/")) -> bool | None:
    """Whether the network is paid by the byte; None when nothing says so.

    NetworkManager's word where it runs, with its own guess for phones. Else a default route over a
    mobile link counts as metered.
    """
    told = _METERED.get(_network_manager())
    if told is not None:
        return told
    links = _default_links(root)
    if not links:
        return None
    return any(
        link.startswith(_MOBILE)
        or "DEVTYPE=wwan" in _text(root / "sys/class/net" / link / "uevent").split()
        for link in links
    )


def _default_links(root: Path) -> list[str]:
    """Network interfaces with a default route (IPv4 and IPv6), the best first."""
    found: list[tuple[int, str]] = []
    for line in _text(root / "proc/net/route").splitlines()[1:]:
        words = line.split()  # Iface Destination Gateway Flags RefCnt Use Metric Mask ...
        if len(words) >= 8 and words[1] == words[7] == "00000000" and words[6].isdecimal():
            found.append((int(words[6]), words[0]))
    for line in _text(root / "proc/net/ipv6_route").splitlines():
        words = line.split()  # destination, its prefix length, source, ..., metric at 5, name last
        if len(words) == 10 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            found.append((int(words[5], 16), words[9]))
    best = min((metric for metric, _ in found), default=0)
    return sorted({name for metric, name in found if metric == best})


def _network_manager() -> str:
    """What NetworkManager's property Metered is; empty when nobody answers."""
    import shutil  # only devices that ask need the memory for these two
    import subprocess

    busctl = shutil.which("busctl")
    if busctl is None:
        return ""
    name, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
    command = [busctl, "--system", "--auto-start=no", "get-property", name, path, name, "Metered"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("busctl: %s", error)
        return ""
    return done.stdout.strip()


def _text(path: Path) -> str:
    """A small file of the kernel's; empty when it cannot be read (sensors come and go)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
