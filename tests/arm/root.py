"""A Debian for Arm in a folder, and commands run inside it.

`python -m tests.arm.root WHEEL [SYSTEM ...]` makes what is missing and installs the wheel.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOTS = Path(__file__).parents[2] / "runs" / "arm"
FEDGE = "/opt/fedge/bin/fedge"
PYTHON = "/opt/fedge/bin/python"
_ENVIRONMENT = "/opt/fedge"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
#: Emulated, a step of an installation takes minutes.
_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Machine:
    """What is emulated.

    Attributes:
        name: as `uname -m` says.
        emulator: name of its entry for the kernel.
        cpu: decides which kernels the interpreters choose.
    """

    name: str
    emulator: str
    cpu: str


_ARM64 = Machine("aarch64", "qemu-aarch64", "cortex-a72")  # Raspberry Pi 4
_ARMHF = Machine("armv7l", "qemu-arm", "cortex-a7")  # Raspberry Pi 2


@dataclass(frozen=True)
class System:
    """A Debian.

    Attributes:
        architecture: as Debian calls it.
        suite: its release.
        machine: that it is for.
        runtimes: that have a wheel for it; the first is installed with fedge.
        packages: of Debian, that the installation needs.
        venv: options of `python3 -m venv`.
    """

    architecture: str
    suite: str
    machine: Machine
    runtimes: tuple[str, ...]
    packages: tuple[str, ...] = ("python3", "python3-venv")
    venv: tuple[str, ...] = ()


SYSTEMS = {
    "arm64": System("arm64", "bookworm", _ARM64, ("tflite-runtime", "ai-edge-litert")),
    "arm64-trixie": System("arm64", "trixie", _ARM64, ("ai-edge-litert",)),
    # NumPy, PyYAML and msgspec have no wheel: two from apt, one compiled (docs/runtimes.md).
    "armhf": System(
        "armhf",
        "bookworm",
        _ARMHF,
        ("tflite-runtime",),
        ("python3-venv", "python3-numpy", "python3-yaml", "python3-dev", "gcc"),
        ("--system-site-packages",),
    ),
}

#: Mounts vanish with their namespace. Words: the root, the processor, a folder to share or "", the
#: command. /sys stays outside: it describes this machine's processor, and ai-edge-litert, which
#: reads it, then crashes.
_ENTER = """
root=$1 cpu=$2 shared=$3; shift 3
for kernel in proc dev; do mount --rbind /$kernel "$root/$kernel"; done
if [ -n "$shared" ]; then mkdir -p "$root$shared"; mount --bind "$shared" "$root$shared"; fi
export QEMU_CPU="$cpu" PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8
exec chroot "$root" /usr/bin/env -i QEMU_CPU="$cpu" PATH="$PATH" HOME="$HOME" LANG="$LANG" "$@"
"""


class NotHere(Exception):
    """This machine cannot run Debian for Arm; says what is missing."""


@dataclass(frozen=True)
class Root:
    """A root file system.

    Attributes:
        name: of its system, in `SYSTEMS`.
    """

    name: str

    @property
    def system(self) -> System:
        """What is in it."""
        return SYSTEMS[self.name]

    @property
    def folder(self) -> Path:
        """Where it is."""
        return ROOTS / self.name

    def inside(self, *command: str, shared: Path | None = None) -> list[str]:
        """What runs a command inside; the process is the emulator itself, signals reach it.

        Args:
            command: program and arguments.
            shared: a folder that is there under the same path inside.
        """
        words = [str(self.folder), self.system.machine.cpu, str(shared or ""), *command]
        unshare = shutil.which("unshare") or "unshare"
        return [unshare, "--mount", "sh", "-euc", _ENTER, "sh", *words]

    def run(self, *command: str, shared: Path | None = None) -> str:
        """What a command inside prints.

        Raises:
            subprocess.CalledProcessError: it failed; its stderr goes to ours.
        """
        done = subprocess.run(
            self.inside(*command, shared=shared),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_LONGEST_S,
        )
        return done.stdout

    def build(self) -> None:
        """Makes the root with debootstrap, whose usual mirror FEDGE_ARM_MIRROR replaces."""
        if self.folder.exists():
            return
        unfinished = self.folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        include = ",".join(("ca-certificates", *self.system.packages))
        options = [
            f"--arch={self.system.architecture}",
            "--variant=minbase",
            f"--include={include}",
        ]
        mirror = [os.environ["FEDGE_ARM_MIRROR"]] if "FEDGE_ARM_MIRROR" in os.environ else []
        # In a namespace of its own: what it mounts must not outlive an interrupted run.
        command = [
            "unshare",
            "--mount",
            "debootstrap",
            *options,
            self.system.suite,
            str(unfinished),
            *mirror,
        ]
        log = unfinished.with_suffix(".log")
        with log.open("wb") as file:
            done = subprocess.run(command, stdout=file, stderr=file, timeout=_LONGEST_S)
        if done.returncode:
            raise NotHere(f"debootstrap failed; {log} says: {log.read_text().strip()[-300:]}")
        unfinished.rename(self.folder)

    def install(self, wheel: Path) -> None:
        """Puts fedge into an environment of its own, new each time, as docs/runtimes.md says."""
        shutil.copy("/etc/resolv.conf", self.folder / "etc" / "resolv.conf")
        shutil.copy(wheel, self.folder / "root" / wheel.name)
        settings = [f"{key}={value}" for key, value in self._pip_settings().items()]
        self.run("rm", "-rf", _ENVIRONMENT)
        self.run("python3", "-m", "venv", *self.system.venv, _ENVIRONMENT)
        pip = ["env", *settings, PYTHON, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        self.run(*pip, f"/root/{wheel.name}")
        print(f"{self.name}: {self._installed_bytes() / 1e6:.0f} MB", flush=True)
        for runtime in self.system.runtimes[1:]:
            self.run(*pip, runtime, "numpy<2")  # tflite-runtime beside it stands no other

    def _installed_bytes(self) -> int:
        files = (self.folder / _ENVIRONMENT.lstrip("/")).rglob("*")
        return sum(path.lstat().st_size for path in files if path.is_file())

    def _pip_settings(self) -> Mapping[str, str]:
        """The machine's own pip configuration as environment variables that hold inside.

        Folders of packages stay outside; a file of certificates is copied.
        """
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        settings = {}
        for line in sorted(listed.splitlines()):  # the environment's come first and give way
            key, _, quoted = line.partition("=")
            name, value = key.rpartition(".")[2], quoted.strip("'")
            if name in ("index-url", "extra-index-url", "proxy", "trusted-host", "timeout"):
                value = " ".join(word for word in value.split() if not word.startswith("file:"))
            elif name == "cert":
                shutil.copy(value, self.folder / "root" / "machine.crt")
                value = "/root/machine.crt"
            else:
                continue
            if value:
                settings[f"PIP_{name.upper().replace('-', '_')}"] = value
        return settings


def prepare(machine: Machine) -> None:
    """Sees to it that this machine runs programs of that kind.

    Raises:
        NotHere: it cannot; says what to do.
    """
    if os.geteuid() != 0:
        raise NotHere("a root file system is made and entered by root: sudo make test-arm")
    missing = [name for name in ("debootstrap", "unshare", "chroot") if shutil.which(name) is None]
    if missing:
        raise NotHere(f"{missing[0]} is missing: apt install debootstrap qemu-user-static")
    if platform.machine() == machine.name or _registered(machine):
        return
    if shutil.which("update-binfmts") is None or shutil.which(f"{machine.emulator}-static") is None:
        raise NotHere("no emulator: apt install qemu-user-static binfmt-support")
    if not (_BINFMT / "register").exists():
        mount = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)]
        subprocess.run(mount, check=False, timeout=60)
    enable = ["update-binfmts", "--enable", machine.emulator]
    subprocess.run(enable, check=False, timeout=60)
    if not _registered(machine):
        raise NotHere(f"the kernel does not take {machine.emulator} into binfmt_misc")


def _registered(machine: Machine) -> bool:
    return (_BINFMT / machine.emulator).exists()


def existing(name: str) -> Root:
    """A root that was made before.

    Raises:
        NotHere: it was not.
    """
    root = Root(name)
    if not (root.folder / FEDGE.lstrip("/")).exists():
        raise NotHere(f"no {root.folder}: make test-arm")
    prepare(root.system.machine)  # registrations end with a restart of the machine
    return root


def main(wheel: Path, names: Sequence[str]) -> None:
    """Makes the roots that are missing, and installs the wheel in each."""
    for name in names:
        if name not in SYSTEMS:
            raise NotHere(f"no system {name!r}; there are: {', '.join(SYSTEMS)}")
        root = Root(name)
        prepare(root.system.machine)
        step(name, "debootstrap", root.build)
        step(name, "install", functools.partial(root.install, wheel))


def step(name: str, what: str, action: Callable[[], None]) -> None:
    """Says what is done, and how long it took."""
    print(f"{name}: {what} ...", flush=True)
    started = time.monotonic()
    action()
    print(f"{name}: {what} took {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:] or list(SYSTEMS))
    except NotHere as error:
        sys.exit(f"error: {error}")
