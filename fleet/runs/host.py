"""Hosts many agents in one process: each with its own state, link and files, on shared threads.

    one network thread      every agent's connection (epoll)
    one owner thread        every agent's state: the only one that calls `handle`
    a few workers           load, train, evaluate; each holds the program once
    a few disk threads      write updates before they are sent

On the wire every agent looks like a process of its own: each has its own client id, session, will
and heartbeats, fetches its own blobs, and also has its own data, spool and other files. In memory
they share what is the same for all: programs, packages, θ, and the chunks of what is being fetched.
"""

from __future__ import annotations

import gc
import heapq
import logging
import math
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from edge_agent.config import AgentConfig, load_agent_config
from edge_agent.machine.decoded_plan import CommonBlobs
from edge_agent.service import AgentService, make_agent, make_link
from edge_agent.worker import WorkerPool
from fedge.errors import ConfigError, FederationError
from fedge.files import claimed
from fedge.open_files import raise_file_limit
from fedge.yaml_config import located

log = logging.getLogger(__name__)

AGENT_FILE = "agent.yaml"
WORKERS = 2
#: A synchronised write waits for the disk, and disks take several at once.
_DISK_THREADS = 4
#: Open files of each agent: its socket and its lock.
_AGENT_FILES = 2
#: Other open files: libraries, data being read, spools being written.
_OTHER_FILES = 200
#: Programs a worker keeps, for hosts with agents of several federations.
_PROGRAMS = 4

#: An agent's configuration, and the folder that its paths are relative to.
Placed = tuple[AgentConfig, Path]


class AgentHost:
    """Runs agents until told to stop.

    Args:
        agents: to run.
        workers: number of threads that train.
        give_up_s: seconds after which an agent without a connection is given up; None waits for
            ever.

    Raises:
        ConfigError: two agents have one id or one state folder, another process uses the folder,
            the file limit is too low, or broker settings name files that cannot be read.
    """

    def __init__(
        self, agents: Sequence[Placed], *, workers: int = WORKERS, give_up_s: float | None = None
    ) -> None:
        _check_ids(config for config, _ in agents)
        raise_file_limit(_AGENT_FILES * len(agents) + _OTHER_FILES)
        self.names = [config.agent_id for config, _ in agents]
        #: The agent whose event is being handled; for log lines.
        self.current = ""
        #: Numbers of agents whose link has an event, one entry for each event; None: stop.
        self._ready: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._network = NetworkLoop("fedge-host")
        self._pool = WorkerPool(workers, _PROGRAMS)
        self._common = CommonBlobs()
        self._disk = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="spool")
        self._links: list[MqttLink] = []
        self._services: dict[int, AgentService] = {}
        self._alarms: list[tuple[float, int]] = []
        #: The valid alarm of each agent; other entries in the heap are outdated.
        self._alarm_s: dict[int, float] = {}
        self._last_error: FederationError | None = None
        self._claims = ExitStack()
        try:
            for config, base in agents:
                self._add(config, base, give_up_s)
        except BaseException:
            self._release()
            raise

    def _add(self, config: AgentConfig, base: Path, give_up_s: float | None) -> None:
        number = len(self._links)
        self._claims.enter_context(claimed(located(config.state_dir, base), "agent"))
        agent = make_agent(config, base, self._common)
        link = make_link(agent, config, base, self._network, lambda: self._ready.put(number))
        self._links.append(link)
        self._services[number] = AgentService(
            agent, link, config, base, self._pool, give_up_s, self._disk
        )

    def stop(self) -> None:
        """Ends `run`; may be called from any thread or a signal handler."""
        self._ready.put(None)

    def run(self) -> None:
        """Serves all agents until `stop`; every agent publishes offline at the end.

        An agent that fails permanently (its broker refuses it) is given up; the others go on.

        Raises:
            FederationError: no agent is left; the error of the last one.
        """
        try:
            for number, service in list(self._services.items()):
                self._guarded(number, service.begin)
            self._serve()
            for number, service in list(self._services.items()):
                self._guarded(number, service.end)
        finally:
            self._release()
        if not self._services and self._last_error is not None:
            raise self._last_error

    def _serve(self) -> None:
        while self._services:
            try:
                number = self._ready.get(timeout=self._pause_s())
            except queue.Empty:
                pass
            else:
                if number is None:
                    log.info("stopping %d agents", len(self._services))
                    return
                self._take(number, from_link=True)
            self._wake()

    def _take(self, number: int, *, from_link: bool) -> None:
        service = self._services.get(number)
        if service is None:
            return  # given up; its link still had an event
        event = self._links[number].poll(0.0) if from_link else None
        self._guarded(number, lambda: service.take(event))

    def _guarded(self, number: int, step: Callable[[], None]) -> None:
        """Runs one agent's step; a failure ends this agent alone."""
        service = self._services[number]
        self.current = self.names[number]
        try:
            step()
            self._set_alarm(number, time.monotonic() + service.pause_s())
        except FederationError as error:
            log.error("agent given up: %s", error, extra={"event": "agent_given_up"})
            self._last_error = error
            self._links[number].begin_close()
            del self._services[number]
        finally:
            self.current = ""

    # -- time -----------------------------------------------------------------------------------

    def _set_alarm(self, number: int, due_s: float) -> None:
        # A later alarm need not be set: the earlier one finds nothing due and sets it.
        if due_s < self._alarm_s.get(number, math.inf):
            self._alarm_s[number] = due_s
            heapq.heappush(self._alarms, (due_s, number))

    def _pause_s(self) -> float:
        return max(0.0, self._alarms[0][0] - time.monotonic())

    def _wake(self) -> None:
        now_s = time.monotonic()
        while self._alarms and self._alarms[0][0] <= now_s:
            due_s, number = heapq.heappop(self._alarms)
            if self._alarm_s.get(number) == due_s:
                del self._alarm_s[number]
                self._take(number, from_link=False)

    # -- the end --------------------------------------------------------------------------------

    def _release(self) -> None:
        for link in self._links:  # all at once: each close waits for the broker
            link.begin_close()
        for link in self._links:
            link.close()
        self._pool.stop()
        self._disk.shutdown()
        self._network.close()
        self._claims.close()


def find_agents(folders: Iterable[Path]) -> list[Placed]:
    """Returns the agents in some folders: each holds an `agent.yaml`, or folders that do.

    Raises:
        ConfigError: a folder holds neither, or a file is wrong; begins with the file's name.
    """
    found: list[Placed] = []
    for folder in folders:
        files = sorted(folder.glob(f"*/{AGENT_FILE}"))
        if (folder / AGENT_FILE).is_file():
            files = [folder / AGENT_FILE]
        if not files:
            raise ConfigError(f"{folder}: no {AGENT_FILE} here or in a folder below")
        found += [(load_agent_config(file), file.parent) for file in files]
    return found


def run_host(
    folders: Iterable[Path], *, workers: int = WORKERS, give_up_s: float | None = None
) -> None:
    """Runs the agents of some folders until SIGTERM or SIGINT.

    Raises:
        ConfigError: see `find_agents` and `AgentHost`.
        FederationError: see `AgentHost.run`.
    """
    host = AgentHost(find_agents(folders), workers=workers, give_up_s=give_up_s)
    log.info("hosting %d agents", len(host.names))
    # These objects live to the end: scanning thousands of agents at every garbage collection took a
    # third of the time to connect.
    gc.freeze()
    with _signals(host), _named_lines(host):
        host.run()


@contextmanager
def _signals(host: AgentHost) -> Iterator[None]:
    stopping = False

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:  # a second Ctrl-C ends at once
            raise KeyboardInterrupt
        stopping = True
        host.stop()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [(number, signal.signal(number, request_stop)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _named_lines(host: AgentHost) -> Iterator[None]:
    """Prefixes log lines with the agent whose event is being handled."""
    owner = threading.get_ident()

    def name(record: logging.LogRecord) -> bool:
        if host.current and record.thread == owner:
            record.msg = f"{host.current}: {record.msg}"
        return True

    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(name)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(name)


def _check_ids(configs: Iterable[AgentConfig]) -> None:
    ids = Counter((config.federation, config.agent_id) for config in configs)
    (federation, agent_id), count = next(iter(ids.most_common(1)), (("", ""), 0))
    if count > 1:
        raise ConfigError(
            f"{count} agents of {federation} have the id {agent_id}: give each agent its own id"
        )
