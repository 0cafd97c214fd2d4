"""Worker: threads that train, apart from the thread that owns the agents' state.

Training blocks for minutes on a small device; the network and the state machine must go on. A
device has one thread and one agent; a host of many agents shares a few threads among them, and a
program is loaded once for each thread, whichever agent needs it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from edge_agent.config import AgentConfig
from edge_agent.data.dataset import LocalDataset, load_dataset
from edge_agent.data.size import data_bytes
from edge_agent.data.targets import target_findings
from edge_agent.machine.events import (
    Event,
    JobDone,
    JobFailed,
    LoadPackage,
    PackageFailed,
    StartJob,
)
from edge_agent.machine.pending_update import LocalReport
from edge_agent.training.local_device import LocalModel
from edge_agent.training.local_task import run_local_task
from edge_agent.training.memory_estimate import estimate, shortage
from edge_agent.training.package_loaded import package_loaded
from edge_agent.training.throttle import Throttle
from fedge.errors import DeclinedError, FederationError
from fedge.system import available_bytes, resident_bytes, return_freed_memory
from fedge.yaml_config import located
from learning.phases.evaluate import LABEL_SHIFT
from models.package.package import Unpacked, unpack_wire
from models.runtime.program import Program

log = logging.getLogger(__name__)

_JOIN_S = 5.0


@dataclass(frozen=True, eq=False)
class _Model:
    """Unpacked package, shared by all workers that hold it."""

    package: str
    content: Unpacked


@dataclass(eq=False)
class _Job:
    work: LoadPackage | StartJob
    cancelled: threading.Event = field(default_factory=threading.Event)


class WorkerPool:
    """Pool of threads that load, train and evaluate for any number of agents.

    Args:
        threads: that work at a time.
        programs: that a thread keeps loaded; more when agents of several models share the pool.
    """

    def __init__(self, threads: int = 1, programs: int = 1) -> None:
        self._keep = programs
        self._ready: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self._models: WeakValueDictionary[str, _Model] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"trainer-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def worker(self, config: AgentConfig, base: Path, report: Callable[[Event], None]) -> Worker:
        """Returns one agent's place in the pool.

        Args:
            config: of the agent.
            base: folder that the configuration's paths are relative to.
            report: takes the resulting events; called on a thread of the pool.
        """
        return Worker(self, config, base, report)

    def stop(self) -> None:
        """Ends the threads; waits for the running steps at most 5 s."""
        self._stopping = True
        for _ in self._threads:
            self._ready.put(None)
        deadline_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    @property
    def stopping(self) -> bool:
        """Whether the pool has been stopped: results are of no more use."""
        return self._stopping

    def enqueue(self, worker: Worker) -> None:
        """Notes that a worker has a job."""
        self._ready.put(worker)

    def model(self, package: str, wire: bytes) -> _Model:
        """Returns the unpacked package, one for all agents that have the same.

        Raises:
            ModelError: these bytes are no package.
        """
        with self._lock:
            model = self._models.get(package)
            if model is None:
                model = self._models[package] = _Model(package, unpack_wire(wire))
            return model

    def _run(self) -> None:
        programs = _Programs(self._keep)
        while (worker := self._ready.get()) is not None and not self._stopping:
            worker.work(programs)
            if self._ready.empty():
                return_freed_memory()  # the next round may be hours away


class _Programs:
    """Programs that one thread has loaded, the latest last."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._loaded: OrderedDict[tuple[str, str | None, int], Program] = OrderedDict()

    def get(self, model: _Model, config: AgentConfig) -> Program:
        key = (model.package, config.runtime, config.threads)
        if key not in self._loaded:
            while len(self._loaded) >= self._keep:  # before loading: a device is short of memory
                self._loaded.popitem(last=False)
            content = model.content
            self._loaded[key] = Program(
                content.program,
                content.spec,
                frozen=content.frozen,
                runtime=config.runtime,
                threads=config.threads,
            )
        self._loaded.move_to_end(key)
        return self._loaded[key]


class Worker:
    """Worker of one agent in a pool: does its jobs one at a time, in order."""

    def __init__(
        self,
        pool: WorkerPool,
        config: AgentConfig,
        base: Path,
        report: Callable[[Event], None],
    ) -> None:
        self._pool = pool
        self._config = config
        self._base = base
        self._report = report
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()  # the first is running or about to
        self._model: tuple[_Model, LocalDataset] | None = None
        self._nice = config.limits.nice
        self._shift = 0
        self._paused = False  # written by the owner's thread only

    def submit(self, work: LoadPackage | StartJob) -> None:
        """Adds a job behind those submitted before."""
        with self._lock:
            self._jobs.append(_Job(work))
            first = len(self._jobs) == 1
        if first:
            self._pool.enqueue(self)

    @property
    def is_idle(self) -> bool:
        """Whether no job is running or waiting."""
        with self._lock:
            return not self._jobs

    def cancel(self) -> None:
        """Cancels all jobs submitted so far, before their next step."""
        with self._lock:
            for job in self._jobs:
                job.cancelled.set()

    def pause(self, *, paused: bool) -> None:
        """Pauses the running job and those that follow before their next step, or resumes them."""
        self._paused = paused

    def _is_paused(self) -> bool:
        return self._paused and not self._pool.stopping

    def work(self, programs: _Programs) -> None:
        """Does the first job; called on a thread of the pool, never on two at a time."""
        if not _be_nice(self._nice):
            self._nice = 0  # told once
        job = self._jobs[0]
        try:
            event = self._do(job, programs)
        except Exception as error:  # the agent must hear of it, whatever it is
            log.exception("job failed")
            event = _crashed(job.work, repr(error))
        self._report(event)
        with self._lock:
            self._jobs.popleft()
            more = bool(self._jobs)
        if more:
            self._pool.enqueue(self)

    def _do(self, job: _Job, programs: _Programs) -> Event:
        if isinstance(job.work, LoadPackage):
            return self._load(job.work, programs)
        return self._work(job.work, job.cancelled, programs)

    def _load(self, job: LoadPackage, programs: _Programs) -> Event:
        self._model = None
        reason = "no_program"
        try:
            model = self._pool.model(job.package, job.wire)
            if too_large := self._too_large(model):
                return too_large
            program = programs.get(model, self._config)
            reason = "no_data"
            state_dir = located(self._config.state_dir, self._base)
            dataset = load_dataset(self._config.data, model.content.spec, self._base, state_dir)
        except FederationError as error:
            return PackageFailed(job.package, reason, str(error))
        self._model = (model, dataset)
        config, spec = self._config, model.content.spec
        odd = [*target_findings(dataset.arrays, spec, dataset.num_train, dataset.split)]
        for finding in odd:
            log.warning("%s: %s", config.data.path, finding, extra={"event": finding.kind})
        describe = config.describe_targets
        return package_loaded(job.package, program, dataset, odd, describe=describe)

    def _too_large(self, model: _Model) -> PackageFailed | None:
        """Returns a failure when the model and the data would not fit into memory."""
        limits = self._config.limits
        spec, state_dir = model.content.spec, located(self._config.state_dir, self._base)
        size = data_bytes(self._config.data, spec, self._base, state_dir)
        need = estimate(spec, model.content.program, size)
        resident, ceiling = resident_bytes(), limits.max_memory_bytes
        if why := shortage(need, resident=resident, available=None, ceiling=ceiling):
            return PackageFailed(model.package, "memory", why)
        if why := shortage(need, resident=None, available=available_bytes(), ceiling=None):
            return PackageFailed(model.package, "memory", why, needs_bytes=need.total)
        return None

    def _work(self, job: StartJob, cancelled: threading.Event, programs: _Programs) -> Event:
        plan = job.plan
        if self._model is None:
            return JobFailed(plan, "no model is loaded")
        model, dataset = self._model
        throttle = Throttle(
            self._config.limits.cpu_share,
            lambda: cancelled.is_set() or self._pool.stopping,
            self._is_paused,
        )
        try:
            local = LocalModel(programs.get(model, self._config), model.content.personal)
            result = run_local_task(
                plan,
                job.blobs,
                job.state,
                local,
                dataset,
                self._config.agent_id,
                throttle.wait_and_check_cancelled,
                self._config.statistics,
            )
        except DeclinedError as error:
            return JobFailed(plan, str(error), error.reason)
        except FederationError as error:
            return JobFailed(plan, str(error))
        if isinstance(result, LocalReport) and (shift := result.values.get(LABEL_SHIFT)):
            self._warn_of_shift(int(shift[0]))
        return JobDone(plan, result)

    def _warn_of_shift(self, shift: int) -> None:
        if shift != self._shift:  # told once
            self._shift = shift
            log.warning(
                "%s: most labels are %+d from the class that the model predicts: are labels "
                "shifted? Look at the label column",
                self._config.data.path, shift, extra={"event": "label_shift"},
            )  # fmt: skip


def _be_nice(nice: int) -> bool:
    """Lowers the priority of this thread alone: the network must not wait (nice(2)).

    Returns:
        Whether the system allows it; a refusal was logged.
    """
    me = threading.get_native_id()
    if not nice or nice <= os.getpriority(os.PRIO_PROCESS, me):  # back down takes root
        return True
    try:
        os.setpriority(os.PRIO_PROCESS, me, nice)
    except OSError as error:  # a sandbox may forbid it (systemd's SystemCallFilter)
        log.warning(
            "limits.nice %d: %s; set Nice=%d in the unit instead", nice, error.strerror, nice,
            extra={"event": "not_nice"},
        )  # fmt: skip
        return False
    return True


def _crashed(job: LoadPackage | StartJob, detail: str) -> Event:
    if isinstance(job, LoadPackage):
        return PackageFailed(job.package, "no_program", detail, is_transient=True)
    return JobFailed(job.plan, detail)
