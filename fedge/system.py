"""What this machine has and how it is: memory and temperature, from /proc and /sys.

`root` is where these are found: another folder in tests.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

#: A sensor outside of these is broken or means something else.
_COLDEST_C, _HOTTEST_C = -40.0, 150.0
#: glibc's <malloc.h>.
_M_ARENA_MAX = -8


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
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and (words := rest.split()) and words[0].isdecimal():
            rooms.append(int(words[0]) * 1024)
    return min(rooms, default=None)


def _control_groups(root: Path) -> Iterator[int]:
    """Bytes left in each control group that limits this process (cgroup v2: memory.max)."""
    lines = read_text(root / "proc/self/cgroup").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    top = root / "sys/fs/cgroup"
    folder = top / own.lstrip("/")
    while folder.is_relative_to(top) and ".." not in folder.parts:
        # Above "high" the kernel holds a process up, above "max" it ends it.
        limits = [read_text(folder / f"memory.{name}").strip() for name in ("high", "max")]
        limit = min((int(text) for text in limits if text.isdecimal()), default=None)
        used = read_text(folder / "memory.current").strip()
        if limit is not None and used.isdecimal():
            # The kernel counts cached files too, and takes their memory back when it is needed.
            cached = dict(line.split() for line in read_text(folder / "memory.stat").splitlines())
            yield max(0, limit - int(used) + int(cached.get("inactive_file", 0)))
        folder = folder.parent


def resident_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process holds (proc(5): the second number of /proc/self/statm)."""
    words = read_text(root / "proc/self/statm").split()
    if len(words) < 2 or not words[1].isdecimal():
        return None
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def share_one_heap() -> bool:
    """Have all threads allocate from one heap: each of its own would keep what it freed.

    For a process of few threads; before they start (mallopt(3), M_ARENA_MAX).

    Returns:
        Whether this C library can.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, 1) == 1


def return_freed_memory() -> None:
    """Give the system what was freed (malloc_trim(3)); nothing where the C library cannot."""
    if trim := getattr(_c_library(), "malloc_trim", None):
        trim(ctypes.c_size_t(0))


@cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


def temperature_c(root: Path = Path("/")) -> float | None:
    """Of the hottest thermal zone; None when the kernel shows none."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        text = read_text(path).strip()
        if text.lstrip("-").isdecimal():
            found.append(int(text) / 1000.0)  # sysfs-class-thermal: millidegree Celsius
    return max((c for c in found if _COLDEST_C <= c <= _HOTTEST_C), default=None)


def read_text(path: Path) -> str:
    """A small file of the kernel's; empty when it cannot be read (sensors come and go)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
