"""A program that is started again when it ends by itself."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker.local.supervisor import Supervisor


class Watched(Supervisor):
    """Notes pauses instead of making them, and stops after some starts."""

    def __init__(self, code: str, starts: int, ran_s: float) -> None:
        self.starts, self.pauses = 0, list[float]()
        self.stop, self._limit, self._ran_s = threading.Event(), starts, ran_s
        command = [sys.executable, "-c", code]
        clock = iter(range(0, 10**6, 10))
        super().__init__("python", command, self._started, lambda: float(next(clock)))

    def _started(self) -> None:
        self.starts += 1

    def _next_pause_s(self, code: int, ran_s: float) -> float:
        self.pauses.append(super()._next_pause_s(code, self._ran_s))
        if self.starts == self._limit:
            self.stop.set()
        return 0.0

    def go(self) -> None:
        self.run(self.stop)


def test_pauses_grow_and_a_long_run_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 4, ran_s=1)
    with caplog.at_level(logging.WARNING):
        watched.go()
    assert watched.pauses == [0.5, 1.0, 2.0, 4.0]
    assert (
        f"was ended by signal {signal.SIGSEGV.value} after 1 s; started again in 0.5 s"
        in caplog.text
    )
    calm = Watched("pass", 3, ran_s=100)
    calm.go()
    assert calm.pauses == [0.5, 0.5, 0.5]


def test_what_never_ran_is_not_started_again() -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        Supervisor(
            "python", [sys.executable, "-c", "raise SystemExit(3)"], clock_s=lambda: 0.0
        ).run(threading.Event())
    assert error.value.returncode == 3


def test_a_stopped_program_is_ended(tmp_path: Path) -> None:
    stop, file = threading.Event(), tmp_path / "began"
    code = f"import pathlib, time; pathlib.Path({str(file)!r}).touch(); time.sleep(60)"
    thread = threading.Thread(
        target=Supervisor("python", [sys.executable, "-c", code]).run, args=(stop,)
    )
    thread.start()
    while not file.exists():
        threading.Event().wait(0.01)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
