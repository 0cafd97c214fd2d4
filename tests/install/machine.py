"""A Debian of its own: a chroot without systemd, or a container that systemd boots in.

Every machine is an overlay over one root that debootstrap made, so that a fresh one takes a moment.
Nothing in it reaches the network: what is installed comes from a folder of wheels.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What a Raspberry Pi OS has, or an operator installs first; openssh is for `fleet.sh`.
PACKAGES = "systemd-sysv,dbus,procps,python3-venv,mosquitto,openssh-server,openssh-client,sudo"
#: Where the files that an operator would copy are, inside.
KIT = "/root/kit"
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "systemd-analyze")

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}
_Done = subprocess.CompletedProcess[str]


def missing() -> str:
    """What is lacking to make machines here, in words; empty when nothing is."""
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        return "needs root"
    if lacking:
        return f"needs {', '.join(lacking)}: apt-get install debootstrap systemd-container"
    return ""


def make_base(folder: Path, suite: str = "bookworm") -> Path:
    """A minimal Debian in `folder`, from Debian's mirrors; takes minutes, unless it is there."""
    done = folder.with_name(folder.name + ".complete")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=1800)
        (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
        done.touch()
    return folder


def fetch_wheels(wheel: Path, folder: Path) -> Path:
    """The wheel, and all that it and its extra `secure` need, for an installation offline."""
    command = [str(ROOT / ".venv/bin/python"), "-m", "pip", "download", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*command, f"{wheel}[secure]"], check=True, timeout=600)
    return folder


class Machine:
    """A fresh Debian; `close` leaves nothing of it.

    Args:
        layers: what it begins with, the topmost first: see `make_base` and `freeze`.
        folder: for what it changes.
    """

    def __init__(self, *layers: Path, folder: Path) -> None:
        self.root = folder / "root"
        self._container: subprocess.Popen[bytes] | None = None
        self._init = 0
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        lower = ":".join(map(str, layers))
        options = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
        self._mounts = [self.root]
        _call("mount", "-t", "overlay", "overlay", "-o", options, self.root)
        self.kit = self.root / KIT[1:]

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy_kit(self, wheels: Path) -> None:
        """What an operator would copy: the installers and a folder of wheels."""
        shutil.copytree(ROOT / "deploy", self.kit / "deploy")
        shutil.copytree(wheels, self.kit / "wheels")

    def close(self) -> None:
        """Stops it; nothing of it is left."""
        self.freeze()
        shutil.rmtree(self.root.parent)

    def freeze(self) -> Path:
        """Stops it; returns what it has changed, as a layer for other machines."""
        if self._container is not None:
            for pid in self._init_pids():  # first: it outlives systemd-nspawn
                os.kill(pid, signal.SIGKILL)
            self._container.kill()
            self._container.wait()
            self._container, self._init = None, 0
        while self._mounts:
            self._wait_for(self._unmount_last, "the end of all that uses it")
        return self.root.parent / "upper"

    def _unmount_last(self) -> bool:
        if subprocess.run(["umount", str(self._mounts[-1])], check=False).returncode:
            return False
        self._mounts.pop()
        return True

    def mount_proc(self) -> None:
        """Makes a chroot usable; device nodes are debootstrap's own."""
        _call("mount", "-t", "proc", "proc", self.root / "proc")
        self._mounts.append(self.root / "proc")

    def boot(self) -> Machine:
        """Starts systemd in a container with a loopback interface and nothing else."""
        command = ["systemd-nspawn", f"--directory={self.root}", "--boot", "--quiet"]
        command += ["--register=no", "--keep-unit", "--private-network", "--console=pipe"]
        quiet = subprocess.DEVNULL
        self._container = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        self._wait_for(self._has_booted, "boot")
        return self

    def _init_pids(self) -> list[int]:
        """The container's first process, once there is one."""
        assert self._container is not None
        pid = self._container.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:  # ended
            return []
        return [int(child) for child in children.split()]

    def _has_booted(self) -> bool:
        assert self._container is not None
        assert self._container.poll() is None, "systemd-nspawn ended"
        if not (pids := self._init_pids()):
            return False
        self._init = pids[0]
        state = self.run("systemctl is-system-running", check=False).stdout.strip()
        assert state != "degraded", self.run("systemctl --failed", check=False).stdout
        return state == "running"

    def run(self, script: str, *, check: bool = True, timeout_s: float = 180) -> _Done:
        """Runs a line of bash as root, in the kit's folder."""
        inside = ["env", "-i", *(f"{name}={value}" for name, value in _ENVIRONMENT.items())]
        inside += ["bash", "-c", f"cd {KIT} && {{ {script}\n}}"]
        if self._init:
            command = ["nsenter", f"--target={self._init}", "--all", *inside]
        else:
            command = ["chroot", str(self.root), *inside]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check:
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done

    def says(self, script: str) -> str:
        """What the script prints, without the last newline."""
        return self.run(script).stdout.strip()

    def wait(self, script: str, what: str, timeout_s: float = 60) -> None:
        """Until the script succeeds."""
        self._wait_for(lambda: self.run(script, check=False).returncode == 0, what, timeout_s)

    def _wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        until_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until_s, f"did not come: {what}"
            time.sleep(0.2)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        flags = " ".join(f"-p {name}" for name in names)
        lines = self.says(f"systemctl show {flags} {unit}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str, *flags: str) -> str:
        """What a unit has logged."""
        return self.says(f"journalctl --no-pager -o cat {' '.join(flags)} -u {unit}")

    def files(self, *leave_out: str) -> set[str]:
        """Every path below /, except what runs, logs and caches leave anywhere."""
        passing = (
            "/proc",
            "/sys",
            "/dev",
            "/run",
            "/tmp",
            "/var/tmp",
            "/var/log",
            "/var/cache",
            KIT,
        )
        prune = " -o ".join(f"-path {path}" for path in (*passing, *leave_out))
        found = self.run(f"find / -xdev \\( {prune} \\) -prune -o -print").stdout
        return set(found.splitlines())

    def modes(self, paths: Iterable[str]) -> dict[str, str]:
        """`owner:group mode` of each path."""
        lines = self.says(f"stat -c '%n %U:%G %a' {' '.join(paths)}").splitlines()
        return dict(line.split(" ", 1) for line in lines)


def _call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, timeout=60)
