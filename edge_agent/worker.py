"""The thread that trains: slow work away from the thread that owns the agent's state.

Training blocks for minutes on a small device; the network and the state machine must go on.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np

from broker.config import located
from edge_agent.config import AgentConfig
from edge_agent.data.dataset import LocalDataset, load_dataset
from edge_agent.events import (
    Evaluated,
    Event,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    StartJob,
    Trained,
)
from edge_agent.trainer import train
from models.errors import FederationError
from models.package import unpack_wire
from models.program import Program

log = logging.getLogger(__name__)


class Worker:
    """Runs `LoadPackage` and `StartJob`, one at a time, in a daemon thread.

    Args:
        config: of the agent.
        base: folder that the configuration's paths are relative to.
        report: takes the resulting events; called on the worker's thread.
    """

    def __init__(self, config: AgentConfig, base: Path, report: Callable[[Event], None]) -> None:
        self._config = config
        self._base = base
        self._report = report
        self._jobs: queue.SimpleQueue[LoadPackage | StartJob | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._model: tuple[Program, LocalDataset] | None = None
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)
        self._thread.start()

    def submit(self, job: LoadPackage | StartJob) -> None:
        """Do this after what was submitted before."""
        self._cancelled.clear()
        self._jobs.put(job)

    def cancel(self) -> None:
        """The running training may stop before its next step."""
        self._cancelled.set()

    def stop(self) -> None:
        """Cancel, and let the thread end; waits for the running step at most 5 s."""
        self.cancel()
        self._jobs.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                event = self._load(job) if isinstance(job, LoadPackage) else self._work(job)
            except Exception as error:  # the agent must hear of it, whatever it is
                log.exception("job failed")
                event = _failure(job, repr(error))
            self._report(event)

    def _load(self, job: LoadPackage) -> Event:
        self._model = None
        reason = "no_program"
        try:
            spec, data = unpack_wire(job.wire)
            program = Program(
                data, spec, runtime=self._config.runtime, threads=self._config.threads
            )
            reason = "no_data"
            state_dir = located(self._config.state_dir, self._base)
            dataset = load_dataset(self._config.data, spec, self._base, state_dir)
        except FederationError as error:
            return PackageFailed(job.package, reason, str(error))
        self._model = (program, dataset)
        return PackageLoaded(
            job.package, spec.fingerprint, program.runtime, dataset.num_train, dataset.num_test
        )

    def _work(self, job: StartJob) -> Event:
        plan = job.plan
        if self._model is None:
            return JobFailed(plan, "no model is loaded")
        program, dataset = self._model
        try:
            if plan.task == "evaluate":
                inputs, target = dataset.part("test")
                return Evaluated(plan, program.evaluate(job.theta, inputs, target))
            agent = crc32(self._config.agent_id.encode())
            rng = np.random.default_rng([plan.seed, agent, 0])
            rows = dataset.part("train")
            cancelled = self._cancelled.is_set
            return Trained(plan, train(program, job.theta, rows, plan.training, rng, cancelled))
        except FederationError as error:
            return JobFailed(plan, str(error))


def _failure(job: LoadPackage | StartJob, detail: str) -> Event:
    if isinstance(job, LoadPackage):
        return PackageFailed(job.package, "no_program", detail)
    return JobFailed(job.plan, detail)
