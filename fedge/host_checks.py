"""What both doctors look at on their own machine: packages, disk, memory, temperature."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import fedge
from fedge.check_result import Check, failed, ok, skipped, warning
from fedge.system import available_bytes, memory_bytes, temperature_c

#: What the wheel installs.
NAMES = ("broker", "coordinator", "edge_agent", "fedge", "fleet", "learning", "models")
_OURS = "fedge"
#: A Raspberry Pi slows down from here on, and most boards do not much later.
_HOT_C = 80.0


def owner_check() -> Check:
    """Whether two distributions installed one name: pip says nothing, and the later one wins."""
    owners = importlib.metadata.packages_distributions()
    others = {
        name: sorted({o for o in owners.get(name, ()) if o.lower() != _OURS}) for name in NAMES
    }
    foreign = {name: found for name, found in others.items() if found}
    if not foreign:
        version = fedge.__version__
        return ok("packages", f"fedge {version}, and nobody else has its names", version=version)
    told = "; ".join(f"{name} also of {', '.join(found)}" for name, found in foreign.items())
    advice = "install fedge into an environment of its own: python3 -m venv"
    return failed("packages", told, advice, owners=foreign)


def disk_check(state_dir: Path, least_bytes: int) -> Check:
    """Whether the state folder, or where it would be made, can be written and has room."""
    folder = state_dir
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"fedge")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        advice = "give this user a folder on a disk that can be written (state_dir)"
        return failed("disk", f"{state_dir} cannot be written: {error.strerror}", advice)
    found = f"{state_dir}: {_megabytes(free)} free"
    if free < least_bytes:
        advice = f"make room: {_megabytes(least_bytes)} are good to have"
        return warning("disk", found, advice, free_bytes=free)
    return ok("disk", found, free_bytes=free)


def memory_check(needed_bytes: int = 0) -> Check:
    """Whether so much memory can be had."""
    total, left = memory_bytes(), available_bytes()
    if left is None:
        return skipped("memory", "the kernel does not say what is available")
    found = f"{_megabytes(left)} available of {_megabytes(total)}"
    if left < needed_bytes:
        advice = f"about {_megabytes(needed_bytes)} will be needed: end something else"
        return warning("memory", found, advice, total_bytes=total, available_bytes=left)
    return ok("memory", found, total_bytes=total, available_bytes=left)


def temperature_check() -> Check:
    """Of the hottest sensor."""
    found = temperature_c()
    if found is None:
        return skipped("temperature", "the kernel shows no thermal zone")
    if found >= _HOT_C:
        return warning("temperature", f"{found:.0f} °C", "give it air", celsius=found)
    return ok("temperature", f"{found:.0f} °C", celsius=found)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
