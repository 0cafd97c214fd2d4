"""Starts, watches and ends the processes of a fleet run."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from broker.local.child_process import bound_to_parent
from fedge.errors import WireError

log = logging.getLogger(__name__)

#: Processes get this long to end by themselves before they are killed.
_STOP_S = 5.0
#: The broker runs before the processes start: one that does not reach it in time never will.
_GIVE_UP = ("--give-up-after", "60")


class CoordinatorEvent(msgspec.Struct, frozen=True):
    """One line of `fedge coordinator run --json`."""

    event: str
    record: msgspec.Raw = msgspec.Raw(b"null")
    reason: str = ""
    able: int = 0
    wanted: int = 0
    agent_id: str = ""
    is_transient: bool = False


@dataclass
class Child:
    """One process that the run started.

    Attributes:
        name: shown to people.
        process: the operating system's process.
        log: file with its stderr.
        agents: that the process runs.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    agents: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def last_line(self) -> str:
        """Returns the last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"


@dataclass
class Processes:
    """The coordinator's and the agents' processes of one run.

    Each runs in a session of its own, so that Ctrl-C reaches this process alone, which then ends
    the others in order. When this process is killed, the kernel ends them (see
    `broker.local.child_process`). Start and stop them from one thread.

    Attributes:
        children: processes that run agents.

    Args:
        folder: configurations are in `<folder>/<name>/`, logs are written there.
    """

    folder: Path
    children: list[Child] = field(default_factory=list)
    coordinator: Child | None = None
    events: queue.SimpleQueue[CoordinatorEvent | None] = field(default_factory=queue.SimpleQueue)

    def start_coordinator(self, config: Path) -> None:
        """Starts the coordinator; its events arrive in `events`, then None when it has ended."""
        arguments = ["coordinator", "run", "--config", str(config), "--json", *_GIVE_UP]
        self.coordinator = self._start("coordinator", arguments, subprocess.PIPE)
        reader = threading.Thread(
            target=self._read_events, args=(self.coordinator.process,), daemon=True
        )
        reader.start()

    def start_agent(self, name: str, config: Path) -> None:
        """Starts a process for one agent."""
        arguments = ["agent", "run", "--config", str(config), *_GIVE_UP]
        child = self._start(name, arguments, subprocess.DEVNULL)
        child.agents = (name,)
        self.children.append(child)

    def start_host(self, name: str, agents: Sequence[str]) -> None:
        """Starts one process for many agents; their folders are below the process's folder."""
        arguments = ["fleet", "host", str(self.folder / name), *_GIVE_UP]
        child = self._start(name, arguments, subprocess.DEVNULL)
        child.agents = tuple(agents)
        self.children.append(child)

    def await_coordinator(self, timeout_s: float) -> None:
        """Waits until the coordinator has ended by itself, at most `timeout_s`."""
        assert self.coordinator is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.coordinator.process.wait(timeout_s)

    def stop(self) -> None:
        """Ends all processes: SIGTERM, a few seconds, SIGKILL; interrupted meanwhile, at once."""
        children = list(self.children)
        if self.coordinator is not None:
            children.append(self.coordinator)
        for child in children:
            if child.running:
                child.process.terminate()
        deadline = time.monotonic() + _STOP_S
        try:
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.05, deadline - time.monotonic()))
        finally:
            for child in children:
                if child.running:
                    child.process.kill()
                    child.process.wait()

    def _start(self, name: str, arguments: list[str], stdout: int) -> Child:
        log = self.folder / name / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = bound_to_parent(os.getpid())
        command += [sys.executable, "-P", "-m", "fedge", *arguments]
        with log.open("ab") as file:  # a run that goes on keeps what was logged before
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=file,
                start_new_session=True,
            )
        return Child(name, process, log)

    def _read_events(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            with process.stdout as lines:
                for line in lines:
                    self._take_line(line)
        finally:
            self.events.put(None)  # also after an error: the run waits for it

    def _take_line(self, line: bytes) -> None:
        try:
            self.events.put(decode_event(line))
        except WireError as error:
            log.warning("%s", error)


def decode_event(line: bytes) -> CoordinatorEvent:
    """Returns the event in one line of the coordinator's output.

    Raises:
        WireError: the line is not an event.
    """
    try:
        return msgspec.json.decode(line, type=CoordinatorEvent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"coordinator said {line[:80]!r}: {error}") from error
