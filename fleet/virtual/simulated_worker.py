"""Training for simulated agents: the real program, loaded once, its time told by the profile."""

from __future__ import annotations

import time
from typing import Any
from zlib import crc32

import numpy as np

from edge_agent.data.dataset import LocalDataset
from edge_agent.machine.events import (
    Evaluated,
    JobFailed,
    LoadPackage,
    PackageFailed,
    StartJob,
    Trained,
)
from edge_agent.machine.events import PackageLoaded as Loaded
from edge_agent.training.personal_layers import PersonalPart
from edge_agent.training.result import TrainingResult
from edge_agent.training.trainer import train
from fedge.errors import FederationError
from fleet.virtual.profiles import DeviceProfile
from models.package.package import Unpacked, unpack_wire
from models.runtime.program import Program


class Workbench:
    """What `edge_agent.worker` does, without its thread.

    Args:
        remember: keep every job's result and hand it out again when the same job comes again: a
            second run of a simulation then costs what it costs beyond its training steps.

    Attributes:
        busy_s: wall time spent in jobs.
    """

    def __init__(self, *, remember: bool = False) -> None:
        self._remember = remember
        self._programs: dict[str, tuple[Program, Unpacked]] = {}
        self._personal: dict[tuple[str, str], PersonalPart] = {}
        self._known: dict[tuple[Any, ...], Trained | Evaluated | JobFailed] = {}
        self.busy_s = 0.0

    def load(self, job: LoadPackage, dataset: LocalDataset) -> Loaded | PackageFailed:
        """Load the program, unless it is here already."""
        if job.package not in self._programs:
            try:
                content = unpack_wire(job.wire)
                program = Program(content.program, content.spec, frozen=content.frozen)
            except FederationError as error:
                return PackageFailed(job.package, "no_program", str(error))
            self._programs[job.package] = program, content
        program, _ = self._programs[job.package]
        return Loaded(
            job.package,
            program.spec.fingerprint,
            program.runtime,
            dataset.num_train,
            dataset.num_test,
        )

    def duration_s(self, job: StartJob, dataset: LocalDataset, profile: DeviceProfile) -> float:
        """Virtual time of a job on a device."""
        if job.plan.task == "train":
            return profile.training_s(dataset.num_train, job.plan.training)
        known = next(iter(self._programs.values()), None)
        batch = known[1].spec.batch_size if known else 1
        return profile.evaluation_s(dataset.num_test, batch)

    def work(
        self, job: StartJob, package: str, agent_id: str, dataset: LocalDataset, seconds: float
    ) -> Trained | Evaluated | JobFailed:
        """Do the job; `seconds` is the time it is said to have taken."""
        plan = job.plan
        key = (agent_id, plan.round_id, plan.task, plan.seed, plan.weights.sha256)
        if (known := self._known.get(key)) is not None:
            # The plan may differ in what does not concern the work (the chunks of its blobs).
            return type(known)(plan, *_rest(known))
        began = time.process_time()
        result = self._work(job, package, agent_id, dataset, seconds)
        self.busy_s += time.process_time() - began
        if self._remember:
            self._known[key] = result
        return result

    def _work(
        self, job: StartJob, package: str, agent_id: str, dataset: LocalDataset, seconds: float
    ) -> Trained | Evaluated | JobFailed:
        plan = job.plan
        program, content = self._programs[package]
        personal = self._personal.setdefault((package, agent_id), PersonalPart(content.personal))
        theta = personal.whole(job.theta)
        try:
            if plan.task == "evaluate":
                return Evaluated(plan, program.evaluate(theta, dataset.part("test")))
            rng = np.random.default_rng([plan.seed, crc32(agent_id.encode()), 0])
            rows = dataset.part("train")
            result = personal.keep(train(program, theta, rows, plan.training, rng))
        except FederationError as error:
            return JobFailed(plan, str(error))
        # Wall time would make two runs of one seed differ.
        timed = TrainingResult(
            result.delta, result.num_examples, result.sums, result.steps, seconds
        )
        return Trained(plan, timed)


def _rest(event: Trained | Evaluated | JobFailed) -> tuple[Any, ...]:
    match event:
        case Trained(_, result):
            return (result,)
        case Evaluated(_, sums):
            return (sums,)
        case JobFailed(_, detail):
            return (detail,)
