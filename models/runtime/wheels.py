"""Wheels of the TFLite interpreters: which fit a platform, and what to do where none does.

Pure functions of machine, Python and C library, so that each combination has a test. The data come
from the file names of the releases named in `WHEELS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Version = tuple[int, int]


@dataclass(frozen=True)
class Platform:
    """Properties of a machine that decide which wheel fits.

    Attributes:
        machine: pip's name: x86_64, aarch64, armv7l, … A 32-bit Python on a 64-bit kernel is
            armv7l, not aarch64.
        python: major and minor version.
        libc: "glibc", "musl", or "" where the system is not Linux.
        libc_version: version of glibc.
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
    """Linux wheels that one project publishes.

    Attributes:
        release: the release that these data describe.
        pythons: first and last Python version.
        glibc: machine -> the oldest glibc that works.
    """

    release: str
    pythons: tuple[Version, Version]
    glibc: Mapping[str, Version]


#: Runtime -> its wheels, in the order in which the runtimes are tried.
WHEELS: dict[str, Wheels] = {
    "tflite-runtime": Wheels(
        "2.14.0", ((3, 8), (3, 11)), {"x86_64": (2, 17), "aarch64": (2, 34), "armv7l": (2, 34)}
    ),
    "ai-edge-litert": Wheels("2.3.0", ((3, 10), (3, 14)), {"x86_64": (2, 27), "aarch64": (2, 27)}),
    "tensorflow": Wheels("2.21.0", ((3, 10), (3, 13)), {"x86_64": (2, 27), "aarch64": (2, 27)}),
}
#: Runtimes small enough for devices: TensorFlow takes 1.6 GB.
DEVICE_RUNTIMES = ("tflite-runtime", "ai-edge-litert")


def missing_wheel_reason(runtime: str, platform: Platform) -> str:
    """Returns why a runtime has no wheel for a platform; empty when it has one."""
    wheels = WHEELS[runtime]
    if platform.libc == "musl":
        return "has no wheel for musl"
    if platform.libc != "glibc":
        return "is supported on Linux only"
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


def install_advice(platform: Platform) -> str:
    """Returns how to get a runtime on a platform, in one line."""
    for name in DEVICE_RUNTIMES:
        if not missing_wheel_reason(name, platform):
            return _install(name, platform)
    if platform.libc == "musl":
        return (
            "no runtime has a wheel for musl (Alpine): take a system with glibc, such as Debian 12 "
            "or the container image python:3.11-slim"
        )
    if platform.libc != "glibc":
        return "agents run on Linux with glibc, on x86_64, aarch64 and armv7l"
    return _platform_advice(platform)


def _install(name: str, platform: Platform) -> str:
    line = f"pip install {name}"
    if name == "tflite-runtime":
        line += " 'numpy<2'"
    if platform.machine == "armv7l":
        line += " (NumPy, msgspec and PyYAML for 32-bit Arm come from piwheels or apt)"
    return line


def _platform_advice(platform: Platform) -> str:
    """Returns what to change on a glibc platform without a wheel."""
    machine = platform.machine
    known = {name: WHEELS[name] for name in DEVICE_RUNTIMES if machine in WHEELS[name].glibc}
    if not known:
        which = "Armv6 (Raspberry Pi 1 and Zero)" if machine == "armv6l" else machine
        return f"no runtime has a wheel for {which}: take x86_64, aarch64 or armv7l"
    # A newer glibc needs a newer system; another Python does not.
    if platform.libc_version < min(wheels.glibc[machine] for wheels in known.values()):
        return (
            f"{_reasons(known, platform)}: take a newer system, such as Debian 12 or Raspberry Pi "
            "OS 12"
        )
    wide = "" if "ai-edge-litert" in known else ", or a 64-bit system"
    return f"{_reasons(known, platform)}: use Python 3.11, as in Debian 12{wide}"


def _reasons(names: Mapping[str, Wheels], platform: Platform) -> str:
    return "; ".join(f"{name} {missing_wheel_reason(name, platform)}" for name in names)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
