"""Checks of this machine for both doctors: packages, disk, memory, temperature."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import fedge
from fedge.check_result import Check, failed, ok, skipped, warning
from fedge.system import available_bytes, memory_bytes, temperature_c

#: Packages that the wheel installs.
NAMES = ("broker", "coordinator", "edge_agent", "fedge", "fleet", "learning", "models")
_OURS = "fedge"
#: Temperature at which a Raspberry Pi slows down; other boards do so little later.
_HOT_C = 80.0


def owner_check() -> Check:
    """Checks that no other distribution has installed our package names.

    pip does not warn about it, and the later installation overwrites the earlier one.
    """
    owners = importlib.metadata.packages_distributions()
    others = {
        name: sorted({o for o in owners.get(name, ()) if o.lower() != _OURS}) for name in NAMES
    }
    foreign = {name: found for name, found in others.items() if found}
    if not foreign:
        version = fedge.__version__
        return ok(
            "packages", f"fedge {version}; no other project has its packages", version=version
        )
    told = "; ".join(f"{name} also from {', '.join(found)}" for name, found in foreign.items())
    advice = "install fedge into an environment of its own: python3 -m venv"
    return failed("packages", told, advice, owners=foreign)


def disk_check(state_dir: Path, least_bytes: int) -> Check:
    """Checks that the state folder, or its parent, can be written and has room."""
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
        advice = "set state_dir to a folder that this user can write"
        return failed("disk", f"{state_dir} cannot be written: {error.strerror}", advice)
    found = f"{state_dir}: {_megabytes(free)} free"
    if free < least_bytes:
        advice = f"free some space: {_megabytes(least_bytes)} are recommended"
        return warning("disk", found, advice, free_bytes=free)
    return ok("disk", found, free_bytes=free)


def memory_check(needed_bytes: int = 0) -> Check:
    """Checks that enough memory is available."""
    total, left = memory_bytes(), available_bytes()
    if left is None:
        return skipped("memory", "the kernel does not report available memory")
    found = f"{_megabytes(left)} available of {_megabytes(total)}"
    if left < needed_bytes:
        advice = f"about {_megabytes(needed_bytes)} are needed: stop other programs"
        return warning("memory", found, advice, total_bytes=total, available_bytes=left)
    return ok("memory", found, total_bytes=total, available_bytes=left)


def temperature_check() -> Check:
    """Checks the temperature of the hottest sensor."""
    found = temperature_c()
    if found is None:
        return skipped("temperature", "the kernel reports no thermal zone")
    if found >= _HOT_C:
        return warning("temperature", f"{found:.0f} °C", "cool this machine", celsius=found)
    return ok("temperature", f"{found:.0f} °C", celsius=found)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
