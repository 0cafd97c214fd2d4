"""Processes that the runner starts: always ended with all below them; their memory and time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from measured import descendants, processor_s, resident_mb

#: One thread of arithmetic for all: the arrays are small, and processor time says more.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
#: Peers that would tell their makers of the run, or look for newer versions.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "JAX_PLATFORMS": "cpu",
}


def environment(python: Path, **more: str) -> dict[str, str]:
    """Variables for a peer: its own Python first, nothing of ours on its path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    path = f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | _ONE_THREAD | _QUIET | {"PATH": path} | more


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it, the polite way first."""
    below = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pid in {*below, *descendants(process.pid)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
        process.wait()


def run_script(command: list[str], folder: Path, variables: dict[str, str], limit_s: float) -> str:
    """What a script prints on its last line.

    Raises:
        RuntimeError: it failed, or took too long; with the last line that says why.
    """
    errors = folder / "errors.txt"
    variables |= {"PEERS_SPAWNED": repr(time.monotonic())}
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
        )
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"took more than {limit_s:g} s") from None
        finally:
            end_tree(process)
    if process.returncode:
        lines = errors.read_text(errors="replace").strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1][:300])
    return output.decode().strip().splitlines()[-1]


def program(pid: int) -> str:
    """What a process runs: a console script's name, `fedge agent`, or the program's own."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    if "-m" in words:
        return " ".join(words[words.index("-m") + 1 :][:2])
    script = words[1] if Path(words[0]).name.startswith("python") and len(words) > 1 else words[0]
    return Path(script).name or "ended"


class Sampler(threading.Thread):
    """Memory and processor time of groups of processes, some times a second, until stopped.

    Args:
        groups: gives the process ids of each group now.

    Attributes:
        peak: most MB of RSS, all processes of a group together.
        programs: most MB of RSS of one process, by group and program.
        processor: moments (`time.monotonic`), and processor seconds of the group until then.
    """

    def __init__(
        self, groups: Callable[[], Mapping[str, list[int]]], every_s: float = 0.25
    ) -> None:
        super().__init__(daemon=True)
        self._groups = groups
        self._every_s = every_s
        self._done = threading.Event()
        self.peak: dict[str, float] = {}
        self.programs: dict[str, float] = {}
        self.processor: dict[str, list[tuple[float, float]]] = {}

    def run(self) -> None:
        """See the class."""
        while not self._done.wait(self._every_s):
            self.sample()

    def sample(self) -> None:
        """Take one sample of every group."""
        for name, pids in self._groups().items():
            resident = {pid: resident_mb(pid) for pid in pids}
            if memory := sum(resident.values()):
                self.peak[name] = max(self.peak.get(name, 0.0), memory)
                for pid, own in resident.items():
                    key = f"{name}: {program(pid)}"
                    self.programs[key] = max(self.programs.get(key, 0.0), own)
                point = (time.monotonic(), sum(processor_s(pid) for pid in pids))
                self.processor.setdefault(name, []).append(point)

    def used_s(self, name: str, begin: float, end: float) -> float:
        """Processor seconds of a group between two moments, as far as samples tell."""
        within = [used for at, used in self.processor.get(name, []) if begin <= at <= end]
        return max(within) - min(within) if within else 0.0

    def stop(self) -> None:
        """End it."""
        self._done.set()
        self.join()
