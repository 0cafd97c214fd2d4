"""Which TFLite interpreter can be installed on a device, and what to do where none can.

Pure: a function of machine, Python and C library, so that each odd combination has a test. Read off
the file names of the releases named in `WHEELS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Version = tuple[int, int]


@dataclass(frozen=True)
class Platform:
    """What decides which wheel fits.

    Attributes:
        machine: as pip names it: x86_64, aarch64, armv7l, … A 32-bit Python on a 64-bit kernel is
            armv7l, not aarch64.
        python: major and minor version.
        libc: "glibc", "musl", or "" where it is not Linux.
        libc_version: of glibc.
    """

    machine: str
    python: Version
    libc: str = "glibc"
    libc_version: Version = (2, 36)

    def __str__(self) -> str:
        libc = f"glibc {_dotted(self.libc_version)}" if self.libc == "glibc" else self.libc
        return f"{self.machine}, Python {_dotted(self.python)}, {libc or 'not Linux'}"


@dataclass(frozen=True)
class Wheels:
    """What one project publishes, built for Linux.

    Attributes:
        release: the release this was read off.
        pythons: the first and the last version it is built for.
        glibc: the oldest that works, for each machine it is built for.
    """

    release: str
    pythons: tuple[Version, Version]
    glibc: Mapping[str, Version]


#: In the order in which they are tried.
WHEELS: dict[str, Wheels] = {
    "tflite-runtime": Wheels(
        "2.14.0", ((3, 8), (3, 11)), {"x86_64": (2, 17), "aarch64": (2, 34), "armv7l": (2, 34)}
    ),
    "ai-edge-litert": Wheels("2.3.0", ((3, 10), (3, 14)), {"x86_64": (2, 27), "aarch64": (2, 27)}),
    "tensorflow": Wheels("2.21.0", ((3, 10), (3, 13)), {"x86_64": (2, 27), "aarch64": (2, 27)}),
}
#: What a device can carry: TensorFlow, 1.6 GB, is recommended to nobody.
LIGHT = ("tflite-runtime", "ai-edge-litert")


def obstacle(runtime: str, platform: Platform) -> str:
    """Why a runtime has no wheel for a platform; empty when it has one."""
    wheels = WHEELS[runtime]
    if platform.libc == "musl":
        return "has no wheel for musl"
    if platform.libc != "glibc":
        return "is known here for Linux only"
    if platform.machine not in wheels.glibc:
        return f"has no wheel for {platform.machine}"
    first, last = wheels.pythons
    if not first <= platform.python <= last:
        return (
            f"has wheels for Python {_dotted(first)} to {_dotted(last)}, "
            f"this is {_dotted(platform.python)}"
        )
    oldest = wheels.glibc[platform.machine]
    if platform.libc_version < oldest:
        return (
            f"needs glibc {_dotted(oldest)} on {platform.machine}, "
            f"this is {_dotted(platform.libc_version)}"
        )
    return ""


def advice(platform: Platform) -> str:
    """What a person does to get a runtime on a platform: one line."""
    for name in LIGHT:
        if not obstacle(name, platform):
            return _install(name, platform)
    if platform.libc == "musl":
        return (
            "no runtime has a wheel for musl (Alpine): take a system with glibc, such as Debian 12 "
            "or the container image python:3.11-slim"
        )
    if platform.libc != "glibc":
        return "agents run on Linux with glibc, on x86_64, aarch64 and armv7l"
    return _another(platform)


def _install(name: str, platform: Platform) -> str:
    line = f"pip install {name}"
    if name == "tflite-runtime":
        line += " 'numpy<2'"
    if platform.machine == "armv7l":
        line += " (NumPy, msgspec and PyYAML for 32-bit Arm come from piwheels or apt)"
    return line


def _another(platform: Platform) -> str:
    """What to change where there is glibc and yet no wheel."""
    machine = platform.machine
    known = {name: WHEELS[name] for name in LIGHT if machine in WHEELS[name].glibc}
    if not known:
        which = "Armv6 (Raspberry Pi 1 and Zero)" if machine == "armv6l" else machine
        return f"no runtime has a wheel for {which}: take x86_64, aarch64 or armv7l"
    # A newer system brings a newer glibc, another Python is installed beside the first.
    if platform.libc_version < min(wheels.glibc[machine] for wheels in known.values()):
        return (
            f"{_reasons(known, platform)}: take a newer system, such as Debian 12 or Raspberry Pi "
            "OS 12"
        )
    wide = "" if "ai-edge-litert" in known else ", or a 64-bit system"
    return f"{_reasons(known, platform)}: use Python 3.11, as in Debian 12{wide}"


def _reasons(names: Mapping[str, Wheels], platform: Platform) -> str:
    return "; ".join(f"{name} {obstacle(name, platform)}" for name in names)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
