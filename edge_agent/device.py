"""What the device is."""

from __future__ import annotations

import os


def memory_bytes() -> int:
    """Physical memory of this device; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
