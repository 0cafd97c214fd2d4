"""Memory and temperature of this machine, from /proc and /sys.

`root` is the folder above both: another folder in tests.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

#: Values outside this range are from a broken sensor or not a temperature.
_COLDEST_C, _HOTTEST_C = -40.0, 150.0
#: glibc's <malloc.h>.
_M_ARENA_MAX = -8

#: Number of threads of libraries of linear algebra, read when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def memory_bytes() -> int:
    """Returns the physical memory of this machine; 0 if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def available_bytes(root: Path = Path("/")) -> int | None:
    """Returns the memory that this process can allocate without swapping or being killed.

    That is the system's MemAvailable (proc(5)), or less if a control group limits the process
    (systemd's MemoryMax, a container).
    """
    rooms = [*_control_groups(root)]
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and (words := rest.split()) and words[0].isdecimal():
            rooms.append(int(words[0]) * 1024)
    return min(rooms, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Returns the smallest limit of the control groups of this process; None without one."""
    return min((limit for limit, _ in _limited_groups(root)), default=None)


def _control_groups(root: Path) -> Iterator[int]:
    """Yields the bytes left in each control group that limits this process."""
    for limit, folder in _limited_groups(root):
        used = read_text(folder / "memory.current").strip()
        if used.isdecimal():
            # The kernel also counts cached files, whose memory it frees when needed.
            cached = dict(line.split() for line in read_text(folder / "memory.stat").splitlines())
            yield max(0, limit - int(used) + int(cached.get("inactive_file", 0)))


def _limited_groups(root: Path) -> Iterator[tuple[int, Path]]:
    """Yields limit and folder of each control group that limits this process (cgroup v2)."""
    lines = read_text(root / "proc/self/cgroup").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    top = root / "sys/fs/cgroup"
    folder = top / own.lstrip("/")
    while folder.is_relative_to(top) and ".." not in folder.parts:
        # Above "high" the kernel slows a process down, above "max" it kills the process.
        limits = [read_text(folder / f"memory.{name}").strip() for name in ("high", "max")]
        limit = min((int(text) for text in limits if text.isdecimal()), default=None)
        if limit is not None:
            yield limit, folder
        folder = folder.parent


def resident_bytes(root: Path = Path("/")) -> int | None:
    """Returns the resident memory of this process (proc(5): second number of statm)."""
    words = read_text(root / "proc/self/statm").split()
    if len(words) < 2 or not words[1].isdecimal():
        return None
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Has processes that start meanwhile take one thread for linear algebra, unless told otherwise.

    Libraries that start a thread for each core would do so in every process, and the order of
    their sums, so the last digit of a result, would depend on the machine.
    """
    added = [key for key in _THREADS if key not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def share_one_heap() -> bool:
    """Makes all threads allocate from one heap: separate heaps would each keep freed memory.

    For a process with few threads; before they start (mallopt(3), M_ARENA_MAX).

    Returns:
        Whether the C library supports it.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, 1) == 1


def return_freed_memory() -> None:
    """Returns freed memory to the system (malloc_trim(3)), if the C library supports it."""
    if trim := getattr(_c_library(), "malloc_trim", None):
        trim(ctypes.c_size_t(0))


@cache
def _c_library() -> Any:
    return ctypes.CDLL(None)


def temperature_c(root: Path = Path("/")) -> float | None:
    """Returns the temperature of the hottest thermal zone; None if there is none."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        text = read_text(path).strip()
        if text.lstrip("-").isdecimal():
            found.append(int(text) / 1000.0)  # sysfs-class-thermal: millidegree Celsius
    return max((c for c in found if _COLDEST_C <= c <= _HOTTEST_C), default=None)


def read_text(path: Path) -> str:
    """Reads a small file of the kernel; empty if it cannot be read (sensors may vanish)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
