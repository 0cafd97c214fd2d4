"""Worker of simulated agents: runs the real local task; the profile sets its virtual time."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from zlib import crc32

import msgspec

from broker.protocol.messages import RoundPlan
from broker.protocol.seeds import Streams
from edge_agent.data.columns import NOT_ALLOWED, StatisticsConfig
from edge_agent.data.dataset import LocalDataset
from edge_agent.data.targets import target_findings
from edge_agent.machine.decoded_plan import decode_plan
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.events import (
    JobDone,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    StartJob,
)
from edge_agent.machine.pending_update import LocalUpdate
from edge_agent.training.local_device import LocalModel
from edge_agent.training.local_task import run_local_task
from edge_agent.training.package_loaded import package_loaded
from fedge.errors import DeclinedError, FederationError
from fleet.virtual.profiles import DeviceProfile
from models.package.package import unpack_wire
from models.runtime.program import Program


class SimulatedWorker:
    """Loads programs and runs jobs like `edge_agent.worker`, without a thread.

    Args:
        remember: keep the result of every job and return it when the same job comes again: a second
            run of a simulation then costs only what training does not.

    Attributes:
        busy_s: processor time of all jobs, those that were remembered too.
    """

    def __init__(self, *, remember: bool = False) -> None:
        self._remember = remember
        self._models: dict[str, LocalModel] = {}
        self._streams = Streams()
        self._known: dict[tuple[Any, ...], JobDone | JobFailed] = {}
        self.busy_s = 0.0

    def load(self, job: LoadPackage, dataset: LocalDataset) -> PackageLoaded | PackageFailed:
        """Loads the program, unless it is loaded already."""
        if job.package not in self._models:
            try:
                content = unpack_wire(job.wire)
                program = Program(content.program, content.spec, frozen=content.frozen)
            except FederationError as error:
                return PackageFailed(job.package, "no_program", str(error))
            self._models[job.package] = LocalModel(program, content.personal)
        program = self._models[job.package].program
        odd = [*target_findings(dataset.arrays, program.spec, dataset.num_train, dataset.split)]
        return package_loaded(job.package, program, dataset, odd)

    def duration_s(self, plan: RoundPlan, dataset: LocalDataset, profile: DeviceProfile) -> float:
        """Returns the virtual time of a job on a device."""
        decoded = decode_plan(plan)
        if decoded.phase.rows == "train":
            return profile.training_s(dataset.num_train, decoded.training)
        known = self._models.get(plan.package)
        batch = known.program.spec.batch_size if known else 1
        return profile.evaluation_s(dataset.num_test, batch)

    def work(
        self,
        job: StartJob,
        agent_id: str,
        dataset: LocalDataset,
        seconds: float,
        statistics: StatisticsConfig = NOT_ALLOWED,
    ) -> JobDone | JobFailed:
        """Runs the job; `seconds` is the training time stated in its update."""
        began = time.process_time()
        work = self._recalled if self._remember else self._work
        done = work(job, agent_id, dataset, seconds, statistics)
        self.busy_s += time.process_time() - began
        return done

    def _recalled(
        self,
        job: StartJob,
        agent_id: str,
        dataset: LocalDataset,
        seconds: float,
        statistics: StatisticsConfig,
    ) -> JobDone | JobFailed:
        plan = job.plan
        key = (
            *(agent_id, plan.round_id, repr(plan.phase), plan.seed),
            *(ref.sha256 for ref in plan.blobs.values()),
            _mark(job.state),
        )
        if key not in self._known:
            self._known[key] = self._work(job, agent_id, dataset, seconds, statistics)
        # The plan may differ where it does not matter for the job (the chunks of its blobs).
        return msgspec.structs.replace(self._known[key], plan=plan)

    def _work(
        self,
        job: StartJob,
        agent_id: str,
        dataset: LocalDataset,
        seconds: float,
        statistics: StatisticsConfig,
    ) -> JobDone | JobFailed:
        plan, model = job.plan, self._models[job.plan.package]
        try:
            result = run_local_task(
                *(plan, job.blobs, job.state, model, dataset, agent_id),
                statistics=statistics,
                stream_at=self._streams.at,
            )
        except DeclinedError as error:
            return JobFailed(plan, str(error), error.reason)
        except FederationError as error:
            return JobFailed(plan, str(error))
        if isinstance(result, LocalUpdate):
            result = replace(result, seconds=seconds)  # wall time would make two runs differ
        return JobDone(plan, result)


def _mark(state: DeviceState) -> int:
    """Returns a number that differs between states of one device."""
    mark = crc32(f"{state.model} {state.session} {state.algorithm}".encode())
    personal = () if state.personal is None else (state.personal,)
    for residual in state.residuals.values():
        mark = crc32(residual.halves.tobytes(), crc32(repr(residual.scale).encode(), mark))
    for vector in (*state.vectors.values(), *personal):
        mark = crc32(vector.tobytes(), mark)
    return mark
