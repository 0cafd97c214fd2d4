"""Readings of the device: memory, temperature, battery, network.

Read from /proc and /sys, which every Linux has: psutil would cost a compiled wheel on each platform
and 1.2 MB of memory, reads no faster, and knows nothing of metered networks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge_agent.machine.limits import DeviceReadings, LimitsConfig
from fedge.system import available_bytes, read_text, temperature_c

log = logging.getLogger(__name__)

#: NetworkManager is a process and a bus away: asked no more often than this.
_METERED_FOR_S = 60.0
_ASK_S = 2.0
#: NMMetered of NetworkManager's D-Bus interface: yes, and its own guess that it is.
_METERED = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}
#: A link to a telephone network, as the kernel and pppd name it.
_MOBILE = ("wwan", "ppp", "rmnet")


class Device(Protocol):
    """Source of readings for an agent's shell."""

    def read(self, limits: LimitsConfig) -> DeviceReadings:
        """Returns what `limits` needs, as it is now."""


class LinuxDevice:
    """Readings of this machine.

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

    def read(self, limits: LimitsConfig) -> DeviceReadings:
        """See `Device`; sensors that no limit needs are left alone."""
        now = self._local_time()
        return DeviceReadings(
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


def battery_percent(root: Path = Path("/")) -> float | None:
    """Returns the charge of the emptiest battery that is being discharged; None without one.

    Batteries of mice and keyboards (scope "Device") are not the device's own.
    """
    found = []
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        kind, scope, status, capacity = (
            read_text(folder / name).strip() for name in ("type", "scope", "status", "capacity")
        )
        own = kind == "Battery" and scope != "Device"
        if own and status == "Discharging" and capacity.isdecimal():
            found.append(float(capacity))
    return min(found, default=None)


def is_metered(root: Path = Path("/")) -> bool | None:
    """Returns whether the network is metered; None when it is not known.

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
        or "DEVTYPE=wwan" in read_text(root / "sys/class/net" / link / "uevent").split()
        for link in links
    )


def _default_links(root: Path) -> list[str]:
    """Returns the network interfaces with the best default route (IPv4 and IPv6), sorted."""
    found: list[tuple[int, str]] = []
    for line in read_text(root / "proc/net/route").splitlines()[1:]:
        words = line.split()  # Iface Destination Gateway Flags RefCnt Use Metric Mask ...
        if len(words) >= 8 and words[1] == words[7] == "00000000" and words[6].isdecimal():
            found.append((int(words[6]), words[0]))
    for line in read_text(root / "proc/net/ipv6_route").splitlines():
        words = line.split()  # destination, its prefix length, source, ..., metric at 5, name last
        if len(words) == 10 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            found.append((int(words[5], 16), words[9]))
    best = min((metric for metric, _ in found), default=0)
    return sorted({name for metric, name in found if metric == best})


def _network_manager() -> str:
    """Returns NetworkManager's property Metered; empty when it does not answer."""
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
